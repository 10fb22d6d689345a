"""predict.py and inference.py: recordings in, activities over time out; the model that comes with the project."""

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, make_windows
from test_v2 import CLASSIFIER, ENCODER, PHYSICS

import inference
import predict
import utils
from bookkeeping.commands import UserError
from experiments import ready

NAMES = ["walking", "upstairs", "downstairs", "sitting&standing"]
FILES = utils.Files("a", "20_120", "v2")
LAYOUT = {
    "time": {"column": "t", "unit": "s"},
    "acc": {"columns": ["ax", "ay", "az"], "unit": "m/s2", "gravity": True},
    "gyro": {"columns": ["gx", "gy", "gz"], "unit": "rad/s"},
    "label": {"column": "label"},
    "activities": dict(zip(NAMES, NAMES, strict=True)),
}


def by_tempo(windows):
    """Logits (N, 4) that show how much a window's acc x moves: 0 for a still one, 3 for a wild one."""
    size = windows[..., 0].std(1)
    return -((size[:, None] - torch.arange(4.0)) ** 2)


MODEL = inference.Model(["still", "slow", "fast", "wild"], by_tempo, 1.0, "v2", None, as_module=by_tempo)


def recording(*parts, begin=0.0, **more):
    """A Recording of parts (seconds, size of acc x), a part of None size being a gap."""
    samples, time = [], []
    for seconds, size in parts:
        steps = np.arange(round(seconds * 20))
        if size is not None:
            wave = np.zeros((len(steps), 6), np.float32)
            wave[:, 0] = size * np.sqrt(2) * np.sin(2 * np.pi * steps / 20)
            samples.append(wave), time.append(begin + steps / 20)
        begin += seconds
    return inference.Recording("r", np.concatenate(samples), np.concatenate(time), **more)


def judged(found, **more):
    (result,) = inference.judge(MODEL, [found], **more)
    return result


# ------------------------------------------------------------------------------------------- windows and rows


def test_no_window_spans_a_gap_and_all_time_is_accounted_for():
    found = judged(recording((20, 0), (30, None), (4, 1), (10, None), (15, 2), begin=100), step=3)
    assert found.start.tolist() == [100, 103, 106, 109, 112, *(164, 167, 170, 173)]
    assert [(round(a, 6), round(b, 6), why) for a, b, why in found.gaps] == [
        (120, 150, "gap"),
        (150, 154, "too short"),
        (154, 164, "gap"),
    ]
    minutes = inference.minutes(found, MODEL.names)
    assert minutes == pytest.approx(
        {"still": 20 / 60, "slow": 0, "fast": 15 / 60, "wild": 0, "too short": 4 / 60, "gap": 40 / 60}
    )
    rows = inference.table(found, MODEL.names)
    assert [row["start"] for row in rows] == sorted((row["start"] for row in rows), key=float)
    assert [row["activity"] for row in rows][4:8] == ["still", "gap", "too short", "gap"]
    assert rows[5] | {"start": "", "end": ""} == dict.fromkeys(rows[5], "") | {"recording": "r", "activity": "gap"}
    assert rows[0]["confidence"] == rows[0]["still"] and rows[0]["end"] == "106.000"


@pytest.mark.parametrize("step", [0.05, 1.7, 6, 20])
def test_spans_cover_every_stretch_once_at_any_step(step):
    found = judged(recording((33, 0), (5, None), (61.3, 3), (2, None), (6, 1)), step=step)
    assert (np.diff(found.spans, axis=1) > 0).all()
    length = np.diff(found.spans, axis=1).sum()
    assert length == pytest.approx(33 + 61.3 + 6)
    assert (found.end <= 33 + 1e-6).sum() + (found.start >= 38 - 1e-6).sum() == len(found.start)
    inside = (found.spans[:, 0] <= found.start + 3) & (found.start + 3 <= found.spans[:, 1])
    assert inside.all()  # each window's middle is in its own span


def test_pieces_and_steps_change_no_window(monkeypatch):
    whole = judged(recording((60, 0), (60, 1), (60, 3)), step=1)
    monkeypatch.setattr(inference, "BATCH", 7)
    assert np.array_equal(judged(recording((60, 0), (60, 1), (60, 3)), step=1).probabilities, whole.probabilities)
    seconds = []
    judged(recording((60, 0), (30, None), (60, 3)), step=1, progress=seconds.append)
    assert sum(seconds) == pytest.approx(150, abs=12)


def test_abstaining_answers_unsure():
    found = judged(recording((30, 0.5), (30, 3)), step=3)
    sure = found.probabilities.max(1) >= 0.6
    assert sure.any() and not sure.all()
    answers = inference.activities(found, MODEL.names, 0.6)
    assert ((answers == "unsure") == ~sure).all()
    assert inference.minutes(found, MODEL.names, 0.6)["unsure"] > 0.4
    assert "unsure" not in inference.activities(found, MODEL.names)


def test_times_are_dates_where_the_recording_has_one():
    row = inference.table(judged(recording((6, 0), begin=1_735_689_600.5, dated=True)), MODEL.names)[0]
    assert (row["start"], row["end"]) == ("2025-01-01T00:00:00.500Z", "2025-01-01T00:00:06.500Z")


def test_labels_count_where_a_window_has_one_that_the_model_knows():
    ids = np.repeat([0, 1, 2, -1], 200)
    found = judged(recording((40, 0), labels=(ids, ["still", "cycling", "wild"])), step=1)
    for start, label in zip(found.start, found.labels, strict=True):
        own = set(ids[round(start * 20) : round(start * 20) + 120].tolist())
        assert label == ({0: 0, 2: 3}.get(own.pop(), -1) if len(own) == 1 else -1)
    assert found.unknown == {"cycling": 5}


def test_a_gyroscope_missing_in_part_is_missing_and_only_v2_judges_without():
    still = recording((12, 0))
    still.samples[150:160, 4] = np.nan
    found = judged(still, step=1)
    assert found.gyroscope.tolist() == [True, True, False, False, False, False, False]
    v1 = MODEL._replace(as_module=None, version="v1")
    with pytest.raises(UserError, match="-mv v1 needs a gyroscope"):
        list(inference.judge(v1, [still], step=1))
    still.samples[0, 0] = np.inf
    with pytest.raises(UserError, match="NaN or infinity"):
        judged(still)
    with pytest.raises(UserError, match=r"\(1, 60, 6\)"):
        MODEL.probabilities(np.zeros((1, 60, 6)))
    assert MODEL.probabilities(np.zeros((0, 120, 6))).shape == (0, 4)


# ------------------------------------------------------------------------------------------------- a trained model


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_probabilities_are_those_of_stage_3(trained, version):
    if version == "v2":
        trained.config("physics", PHYSICS), trained.config("ablations", {})
        trained.config("pretrain_model", base_v2=ENCODER), trained.config("classifier", transformer_v2=CLASSIFIER)
        trained.run("classifier", "-d", "a", "-mv", "v2", "-lr", 0.5)
        trained.run("cross_dataset_test", "-d", "a", "-td", "b", "-mv", "v2")
    files = utils.Files("a", "20_120", version)
    model = inference.load(files)
    saved = np.load(files.classifier("transformer_b.npz"))
    e = np.exp(saved["logits"].astype(np.float64) / model.temperature)
    found = model.probabilities(np.load("dataset/b/data_20_120.npy"))
    assert np.allclose(found, e / e.sum(1, keepdims=True), atol=1e-5) and model.names == NAMES


def write_recordings(folder):
    """raw/one.csv, 60 s with a gap of 5 s, raw/two.csv, 36 s, and layout.json, which describes them."""
    (folder / "raw").mkdir()
    (folder / "layout.json").write_text(json.dumps(LAYOUT))
    data, labels = make_windows(16, seed=3)
    for name, part in (("one", slice(0, 10)), ("two", slice(10, 16))):
        x, kinds = data[part].reshape(-1, 6), labels[part, :, 0].reshape(-1)
        with open(folder / f"raw/{name}.csv", "w", newline="") as handle:
            writer = csv.writer(handle)
            writer.writerow(["t", "ax", "ay", "az", "gx", "gy", "gz", "label"])
            for i, row in enumerate(x):
                if not (name == "one" and 300 <= i < 400):
                    writer.writerow([f"{i / 20:.2f}", *(f"{v:.5f}" for v in row), NAMES[int(kinds[i])]])


@pytest.fixture
def v2_trained(project):
    """A project with a small v2 trained on `a`, and recordings."""
    project.config("physics", PHYSICS), project.config("ablations", {})
    project.config("pretrain_model", base_v2=ENCODER), project.config("classifier", transformer_v2=CLASSIFIER)
    project.run("classifier", "-d", "a", "-mv", "v2", "-lr", 1)
    write_recordings(project.folder)
    return project


def test_v1_predicts_too(trained, capsys):
    write_recordings(trained.folder)
    found = trained.run("predict", "--raw", "raw", "--recordings", "layout.json", "-d", "a", "--quiet")
    assert sum(len(judged.start) for judged in found["judged"]) == 27
    assert "model_transformer.pt: walking" in capsys.readouterr().out


RUN = ("--raw", "raw", "--recordings", "layout.json", "-mv", "v2", "-d", "a", "--quiet")


def test_recordings_in_a_table_and_a_picture_out(v2_trained, capsys):
    before = v2_trained.files()
    found = v2_trained.run("predict", *RUN, "--out", "out/walk.csv", "--figure", "walk.png", "--abstain", 0.3)
    said = capsys.readouterr().out
    assert v2_trained.files() == before  # nothing under saved/, dataset/, embed/: no row in results.csv either
    assert said.count("minutes of walking") == 2 and "labelled windows (they overlap)" in said
    with open("out/walk.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == [*inference.COLUMNS, *NAMES]
    assert [(row["recording"], row["start"], row["end"]) for row in rows if row["activity"] == "gap"] == [
        ("one.csv", "15.000", "20.000")
    ]
    windows = [row for row in rows if row["confidence"]]
    assert len(windows) == 4 + 12 + 11  # 15 s, 40 s and 36 s, a window of 6 s every 3 s
    for row in windows:
        top = max(NAMES, key=lambda name: float(row[name]))
        assert row["activity"] == (top if float(row["confidence"]) >= 0.3 else "unsure")
        assert sum(float(row[name]) for name in NAMES) == pytest.approx(1, abs=5e-4)
    assert found["scores"]["windows"] == sum((judged.labels >= 0).sum() for judged in found["judged"]) > 5
    assert (v2_trained.folder / "walk.png").read_bytes().startswith(b"\x89PNG")


def test_recordings_without_labels_are_judged_alike(v2_trained):
    found = v2_trained.run("predict", *RUN)
    plain = {key: value for key, value in LAYOUT.items() if key not in ("label", "activities")}
    (v2_trained.folder / "layout.json").write_text(json.dumps(plain))
    without = v2_trained.run("predict", *RUN)
    assert without["scores"] is None and found["scores"]
    for one, other in zip(found["judged"], without["judged"], strict=True):
        assert np.array_equal(one.probabilities, other.probabilities)


@pytest.mark.parametrize("seconds, dated", [(8, False), (28, False), (600, True), (36_000, False)])
def test_the_time_line_shows_what_was_judged_however_long(seconds, dated):
    found = recording((seconds / 2, 0), (seconds / 4, None), (seconds / 2, 3), begin=1e9 if dated else 0, dated=dated)
    edges, low, high = line = predict.envelope(found.time, np.linalg.norm(found.samples[:, :3], axis=1))
    assert len(edges) == len(low) + 1 <= predict.PIXELS + 1 and (low <= high)[~np.isnan(low)].all()
    assert np.isnan(low).mean() == pytest.approx(0.2, abs=0.02)  # the gap
    assert np.nanmax(high) == pytest.approx(np.abs(found.samples[:, 0]).max())
    made = judged(found, step=1 if seconds < 60 else 3)
    assert len(made.start) or seconds == 8  # two stretches of 4 s: nothing to judge, but a picture
    figure = predict.timeline([made], [line], MODEL.names, 0.5)
    size, bands, confidence = figure.axes
    assert confidence.get_xlim() == pytest.approx((edges[0], edges[-1]))
    ticks = [label.get_text() for label in confidence.get_xticklabels()]
    assert 2 <= len(ticks) <= 11 and len(set(ticks)) == len(ticks)
    assert [label.get_text() for label in bands.get_yticklabels()] == [*MODEL.names, "unsure"]
    predict.plots.plt.close(figure)


def test_mistakes_are_one_line(v2_trained, capsys):
    for flags, wanted in (
        (["--out", "raw/walk.csv"], "--out raw/walk.csv is in --raw"),
        (["--out", "walk.txt"], "ends with .csv"),
        (["--figure", "walk.jpg"], "ends with .png"),
        (["--step", "0"], "0.05 to 3600"),
    ):
        with pytest.raises(SystemExit, match="2"):
            predict.get_args([*RUN, *flags])
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and wanted in error, error
    status, _, error = v2_trained.command("predict.py", *RUN, "-g", "cpu", "-s", "other")
    wanted = "other_transformer.pt is missing; make it with: python classifier.py -d a -mv v2 -s other -g cpu"
    assert status == 2 and error.startswith("error: ") and error.count("\n") == 1 and wanted in error
    with open("raw/one.csv") as handle:
        short = handle.read().splitlines()[:50]
    for path in (v2_trained.folder / "raw").iterdir():
        path.write_text("\n".join(short) + "\n")
    with pytest.raises(UserError, match="no stretch without a gap lasts the 6 s of a window"):
        v2_trained.run("predict", *RUN, "--out", "walk.csv")
    assert not (v2_trained.folder / "walk.csv").exists()


def test_the_example_of_the_docs_runs(v2_trained):
    text = (ROOT / "docs/predict.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    v2_trained.dataset("uci", 32, seed=1)
    v2_trained.run("classifier", "-d", "uci", "-mv", "v2", "-lr", 1)
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    assert "walking" in done.stdout and done.stdout.count("\n") >= 2


# ----------------------------------------------------------------------------------------------- saved/ready/


def test_which_model_the_flags_name():
    def named(*flags):
        args = predict.get_args(["--raw", "x", "--recordings", "x.json", *flags])
        of_data = args.dataset, args.dataset_version
        return inference.named(*of_data, args.model_version, args.save_model, args.model_file)

    assert named() is None and named("-s", "ready") is None and named("-s", "ready", "-mv", "v2") is None
    assert named("-mv", "v2") == utils.Files("uci", "20_120", "v2", "model", None)
    assert named("-s", "mine").classifier() == utils.Files("uci", "20_120", "v1", "mine").classifier()
    assert named("-d", "a", "-s", "ready").stem == "ready"


def test_the_ready_model_is_made_by_one_command_and_judges(v2_trained, capsys, monkeypatch):
    terms = v2_trained.folder / "saved/ready/TERMS.md"
    with pytest.raises(UserError, match="TERMS.md is missing"):
        ready.main(ready.get_args(["-d", "a,b", "-g", "cpu"]))
    terms.parent.mkdir(parents=True)
    terms.write_text("# Terms\n\nNot for\nsale.\n\n## a\n\nfree\n")
    with pytest.raises(UserError, match="no section '## b'"):
        ready.main(ready.get_args(["-d", "a,b", "-g", "cpu"]))
    terms.write_text(terms.read_text() + "\n## b\n\nfree\n")
    made = ready.main(ready.get_args(["-d", "b,a", "-g", "cpu", "--quiet"]))
    monkeypatch.setattr(inference, "READY", v2_trained.folder / made["path"])
    model = inference.load_ready(path=inference.READY)
    own = inference.load(utils.Files("a+b", "20_120", "v2", "ready"))
    x = make_windows(5, seed=9)[0]
    assert np.array_equal(model.probabilities(x), own.probabilities(x)) and model.temperature == own.temperature
    assert model.record["terms"] == "Not for sale." and model.record["config"]["dataset"] == "a+b"
    v2_trained.config("classifier", transformer_v2=CLASSIFIER | {"steps": 7})  # its own configuration counts
    assert np.array_equal(inference.load_ready(path=inference.READY).probabilities(x), own.probabilities(x))
    inference.READY.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="the JSON beside it is missing; .*python -m experiments.ready"):
        inference.load_ready(path=inference.READY)


def test_what_the_folder_of_the_ready_model_holds():
    """The tracked folder: the terms of every set, and, once it is trained, a model that loads and is small enough."""
    folder = ROOT / "saved/ready"
    text = (folder / "TERMS.md").read_text(encoding="utf-8")
    for name in ready.SETS.split(","):
        assert f"\n## {name}\n" in text
    assert sum(path.stat().st_size for path in folder.iterdir()) <= ready.LARGEST
    if not (folder / "model.pt").exists():
        pytest.skip("saved/ready/model.pt is not there yet: python -m experiments.ready")
    model = inference.load_ready()
    assert model.record["config"]["dataset"] == ready.SETS.replace(",", "+") and model.temperature
    assert model.probabilities(make_windows(3)[0]).sum(1) == pytest.approx(np.ones(3))
