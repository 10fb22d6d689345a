"""Your own recordings: resampling without aliasing, the JSON's every key, and one clear line for each mistake."""

import copy
import json

import numpy as np
import pytest
from raw_files import ROOT, motion_file, shared, written, zipped

from bookkeeping.commands import UserError
from dataset import motion, prepare, recordings, resample, windows
from dataset.archives import open_source
from dataset.description import Layout
from utils import load_windows

EXAMPLE = ROOT / "dataset" / "recordings_motionsense.json"
G = 9.80665


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")


# ---------------------------------------------------------------------------------------------- resampling


def tone(frequency, rate, seconds=40, jitter=0.0, seed=0):
    """(time, sine of `frequency` at it (n, 1)): regular, or with sampling times off by up to `jitter` / 2 intervals."""
    n = int(seconds * rate)
    time = (np.arange(n) + np.random.default_rng(seed).uniform(-jitter / 2, jitter / 2, n)) / rate
    return time, np.sin(2 * np.pi * frequency * time + 0.4)[:, None]


def steps_at(time, count, interval):
    """The times that the resampled steps stand for: centres of slots of 50 ms from half an interval before sample 0."""
    return time[0] - interval / 2 + (np.arange(count) + 0.5) / 20


def resampled(rate, frequency, jitter=0.0, inside=20):
    """(result, true values) at steps that are not near the recording's ends."""
    time, samples = tone(frequency, rate, jitter=jitter)
    result = resample.resample(time, samples)[:, 0]
    interval = 1 / rate if not jitter else float(np.median(np.diff(time)))
    true = np.sin(2 * np.pi * frequency * steps_at(time, len(result), interval) + 0.4)
    return result[inside:-inside], true[inside:-inside]


@pytest.mark.parametrize("rate", [20, 25, 31.25, 50, 100, 128, 200, 400])
@pytest.mark.parametrize("frequency", [0.5, 2, 4, 6])
def test_what_bodies_do_passes(rate, frequency):
    result, true = resampled(rate, frequency)
    assert np.abs(result - true).max() < 0.01


@pytest.mark.parametrize("rate", [31.25, 50, 100, 128, 200, 400])
def test_what_would_fold_back_is_gone(rate):
    for frequency in [f for f in (10.5, 12, 15, 19, 20, 21, 24, 35, 40, 47, 60, 95, 150, 190) if f < rate / 2]:
        assert np.abs(resampled(rate, frequency)[0]).max() < 0.01, frequency


@pytest.mark.parametrize(("rate", "jitter", "allowed"), [(50, 0.3, 0.015), (100, 0.6, 0.01), (400, 0.6, 0.01)])
def test_irregular_samples(rate, jitter, allowed):
    for frequency in (1, 3, 6):
        result, true = resampled(rate, frequency, jitter)
        assert np.abs(result - true).max() < allowed
    for frequency in (12, 14):
        assert np.sqrt(2 * np.mean(resampled(rate, frequency, jitter)[0] ** 2)) < 0.02


def test_constants_pass_unchanged_to_the_very_ends():
    for time in (np.arange(500) / 50, np.cumsum(np.random.default_rng(0).uniform(0.005, 0.03, 900))):
        np.testing.assert_allclose(resample.resample(time, np.full((len(time), 2), 9.81)), 9.81, rtol=1e-12)


def test_regular_20_hz_is_left_as_it_is():
    samples = np.random.default_rng(0).normal(size=(240, 6))
    np.testing.assert_array_equal(resample.resample(np.arange(240) / 20 + 5.0, samples), samples)


@pytest.mark.parametrize("rate", [20, 23.7, 50, 100, 400])
def test_number_of_steps_is_the_duration_times_20(rate):
    n = int(round(60 * rate))
    samples = np.zeros((n, 1))
    assert len(resample.resample(np.arange(n) / rate, samples)) == int(n / rate * 20 + 0.02)


def test_nearly_coincident_samples_do_not_blow_up():
    rng = np.random.default_rng(0)
    time = np.sort(np.concatenate([np.arange(2000) / 50, rng.uniform(0, 40, 300)]))
    result = resample.resample(time, rng.normal(size=(len(time), 1)))
    assert np.abs(result).max() < 4


# ---------------------------------------------------------------------------------------------- the JSON

LAYOUT = {
    "time": {"column": "t", "unit": "ms"},
    "acc": {"columns": ["ax", "ay", "az"], "unit": "m/s2", "gravity": True},
    "gyro": {"columns": ["gx", "gy", "gz"], "unit": "rad/s"},
    "label": {"column": "what"},
    "user": {"path": "user"},
    "position": {"value": "wrist"},
    "path": r"(?P<user>[a-z]+)\.csv$",
    "activities": {"w": "walking", "s": "sitting&standing", "x": None},
}
HEADER = ["t", "ax", "ay", "az", "gx", "gy", "gz", "what"]


def rows(seconds=13.0, rate=50.0, label="w", start=0.0, seed=0):
    """Rows [t in ms, acc in m/s² with gravity, gyro in rad/s, label] of smooth motion."""
    time = np.arange(int(seconds * rate)) / rate + start
    phase = np.random.default_rng(seed).uniform(0, 6, 6)
    wave = np.sin(2 * np.pi * 1.93 * time[:, None] + phase) + 0.5 * np.sin(2 * np.pi * 3.3 * time[:, None])
    values = wave * np.array([2, 2, 2, 0.5, 0.5, 0.5]) + np.array([0.5, 1, 9.7, 0, 0, 0])
    return [[1000 * t, *v, label] for t, v in zip(time.tolist(), values.tolist(), strict=True)]


def table(content, header=HEADER, separator=","):
    return separator.join(header) + "\n" + "".join(separator.join(map(str, row)) + "\n" for row in content)


def layout(**changes):
    spec = copy.deepcopy(LAYOUT) | changes
    return {key: value for key, value in spec.items() if value != "absent"}


def convert(tmp_path, files, **changes):
    path = tmp_path / "layout.json"
    path.write_text(json.dumps(layout(**changes)))
    return recordings.convert(Layout.load(path), written(tmp_path / f"raw{len(list(tmp_path.iterdir()))}", files))


def test_the_same_motion_in_any_units_and_columns(tmp_path):
    plain, _ = convert(tmp_path, {"ann.csv": table(rows())})
    assert plain.data.shape == (2, 120, 6) and plain.activity.tolist() == ["walking"] * 2
    assert plain.columns["user"][1] == ["ann"] and plain.columns["position"][1] == ["wrist"]
    other = [
        [r[7], *np.rad2deg(r[4:7]), *(np.array(r[1:4]) / G - [0, 0, 1.0]), 0.0, 0.0, 1.0, int(1e6 * r[0]) + 10**18]
        for r in rows()
    ]
    header = ["what", "gx", "gy", "gz", "ax", "ay", "az", "vx", "vy", "vz", "t"]
    result, _ = convert(
        tmp_path,
        {"ann.csv": table(other, header, ";")},
        separator=";",
        time={"column": "t", "unit": "ns"},
        acc={"columns": ["ax", "ay", "az"], "unit": "g", "gravity": ["vx", "vy", "vz"]},
        gyro={"columns": ["gx", "gy", "gz"], "unit": "deg/s"},
    )
    np.testing.assert_allclose(result.data, plain.data, atol=2e-4)
    for unit, scale in (("s", 1e-3), ("us", 1e3)):
        scaled = [[r[0] * scale, *r[1:]] for r in rows()]
        result, _ = convert(tmp_path, {"ann.csv": table(scaled)}, time={"column": "t", "unit": unit})
        np.testing.assert_allclose(result.data, plain.data, atol=2e-4)
    result, _ = convert(tmp_path, {"ann.csv": table(rows())}, time={"rate": 50})
    np.testing.assert_allclose(result.data, plain.data, atol=1e-5)


@pytest.mark.parametrize("rate", [20, 25, 60, 100, 200, 400])
def test_any_rate_gives_the_same_windows(tmp_path, rate):
    """The motion is the same function of time, so the windows agree but for half a sample of offset and the filter."""
    reference, _ = convert(tmp_path, {"ann.csv": table(rows(rate=1000 / 2.5))})
    start = 0.5 / rate - 0.5 / 400  # so that both recordings' first interval begins at the same moment
    result, _ = convert(tmp_path, {"ann.csv": table(rows(rate=rate, start=start))})
    inside = slice(10, 110)
    np.testing.assert_allclose(result.data[:, inside], reference.data[:, inside], atol=0.06)


def test_no_window_spans_a_gap(tmp_path):
    content = [r for r in rows(20) if not 7000 <= r[0] < 7200]
    result, _ = convert(tmp_path, {"ann.csv": table(content)})
    assert len(result.data) == 3  # 7 s and 12.8 s: one window, then two from the gap's end
    fresh, _ = convert(tmp_path, {"ann.csv": table([r for r in rows(20) if r[0] >= 7200])})
    np.testing.assert_allclose(result.data[1:], fresh.data, atol=1e-5)
    bridged, _ = convert(tmp_path, {"ann.csv": table(content)}, max_gap=0.5)
    assert len(bridged.data) == 3 and not np.allclose(bridged.data[1:], fresh.data, atol=1e-2)


def test_one_lost_sample_is_no_gap(tmp_path):
    content = [r for i, r in enumerate(rows(12)) if i != 200]
    assert len(convert(tmp_path, {"ann.csv": table(content)})[0].data) == 2


def test_no_window_spans_two_labels_or_files(tmp_path):
    first, second, third = rows(9), rows(9, label="s", start=9), rows(9, label="x", start=18)
    result, dropped = convert(tmp_path, {"ann.csv": table(first + second + third), "bob.csv": table(rows(5))})
    assert result.activity.tolist() == ["walking", "sitting&standing"]
    found = list(dropped.lines())
    assert found[0] == "label mapped to null, left out: ann.csv, 18.0 to 27.0 s: x", found
    assert found[1] == "shorter than the 6 s of a window, left out: bob.csv, 0.0 to 5.0 s", found
    assert result.columns["user"][1] == ["ann", "bob"]


def test_recordings_of_one_file_may_be_interleaved(tmp_path):
    a = [[*r, "one", "7"] for r in rows(7)]
    b = [[*r, "two", "10"] for r in rows(13, label="s", seed=5, start=3.1)]
    mixed = [row for pair in zip(a, b, strict=False) for row in pair] + b[len(a) :]
    files = {"all.csv": table(mixed, [*HEADER, "id", "who"])}
    result, _ = convert(tmp_path, files, recording={"column": "id"}, user={"column": "who"}, path="absent")
    assert result.activity.tolist() == ["walking", "sitting&standing", "sitting&standing"]
    assert result.columns["user"] == (pytest.approx([0, 1, 1]), ["7", "10"])  # numbers in numerical order
    alone, _ = convert(tmp_path, {"ann.csv": table(rows(7))})
    np.testing.assert_allclose(result.data[0], alone.data[0], atol=1e-6)


def test_time_out_of_order_is_refused_or_sorted(tmp_path):
    content = rows(13)
    content[100], content[101] = content[101], content[100]
    with pytest.raises(UserError, match=r'ann.csv, line 103: the time goes back by 0.02 s.*"sort": true'):
        convert(tmp_path, {"ann.csv": table(content)})
    again = content[:50] + content[40:]  # ten rows twice
    with pytest.raises(UserError, match="goes back"):
        convert(tmp_path, {"ann.csv": table(again)})
    result, notes = convert(tmp_path, {"ann.csv": table(again)}, time={"column": "t", "unit": "ms", "sort": True})
    assert any("twice" in line and "10 rows" in line for line in notes.lines())
    np.testing.assert_allclose(result.data, convert(tmp_path, {"ann.csv": table(rows(13))})[0].data, atol=1e-6)


def test_own_classes(tmp_path):
    own = {"classes": ["rowing", "resting"], "activities": {"w": "rowing", "s": "resting"}}
    path = tmp_path / "layout.json"
    path.write_text(json.dumps(layout(**own)))
    raw = written(tmp_path / "raw", {"a.csv": table(rows()), "b.csv": table(rows(label="s", seed=4))})
    reports = prepare.main(prepare.get_args(["-d", "boat", "--raw", str(raw), "--recordings", str(path)]))
    assert not reports["boat"].problems
    labels, config = load_windows("boat", "20_120")[1:]
    assert config["activity_label"] == ["rowing", "resting"] and labels[:, 0, 0].tolist() == [0, 0, 1, 1]


WRONG = {
    "not JSON": (None, "not readable"),
    "unknown key": ({"labels": 1}, "unknown key 'labels'.*did you mean 'label'"),
    "no acc": ({"acc": "absent"}, "'acc' is missing"),
    "no gravity": ({"acc": LAYOUT["acc"] | {"gravity": False}}, "without gravity: CrossHAR's acceleration contains"),
    "gravity unsaid": ({"acc": {"columns": ["ax", "ay", "az"], "unit": "g"}}, 'must say "gravity"'),
    "two columns": ({"acc": LAYOUT["acc"] | {"columns": ["ax", "ay"]}}, "three columns"),
    "a column twice": ({"acc": LAYOUT["acc"] | {"columns": ["ax", "ay", "ay"]}}, "one column twice"),
    "a column for both": ({"gyro": {"columns": ["ax", "ay", "az"], "unit": "rad/s"}}, "cannot serve acc and gyro"),
    "acc's unit": ({"acc": LAYOUT["acc"] | {"unit": "mg"}}, "'acc' needs a unit"),
    "acc's sign": ({"acc": LAYOUT["acc"] | {"sign": "up"}}, "'sign' must be"),
    "gyro's unit": ({"gyro": {"columns": ["gx", "gy", "gz"]}}, "'gyro' needs a unit"),
    "time's unit": ({"time": {"column": "t"}}, "'time' needs a unit"),
    "no time": ({"time": "absent"}, "'time' is missing"),
    "rate": ({"time": {"rate": 10}}, "20 to 1000"),
    "a column counted from 0": ({"acc": LAYOUT["acc"] | {"columns": [0, 1, 2]}}, "a number from 1 on"),
    "a file a sensor that is not there": (
        {"gyro": LAYOUT["gyro"] | {"file": "gyro.csv"}},
        "no file 'gyro.csv' beside it",
    ),
    "label from nowhere": ({"label": {"path": "activity"}}, r"group 'activity', which 'path' does not have"),
    "expression": ({"path": "("}, "no regular expression"),
    "no class of ours": ({"activities": {"w": "strolling"}}, "'strolling', which is none of"),
    "no activities": ({"activities": {}}, "must map"),
    "gap": ({"max_gap": -1}, "'max_gap'"),
    "rows": ({"rows": "many"}, "'rows' must be one of"),
    "decimal": ({"decimal": ";"}, "'decimal' must be"),
    "missing column": ({"gyro": {"columns": ["gx", "gy", "gw"], "unit": "rad/s"}}, "no column 'gw'"),
    "missing gravity": ({"acc": LAYOUT["acc"] | {"gravity": ["vx", "vy", "vz"]}}, "no column 'vx'"),
    "unknown label": ({"activities": {"s": "walking"}}, "ann.csv: label 'w' is not in 'activities'"),
    "no file": ({"files": "*.tsv"}, "does not hold"),
    "path that matches nothing": ({"path": r"(?P<user>\d+)"}, "'path' does not match ann.csv"),
    "wrong time unit": ({"time": {"column": "t", "unit": "s"}}, "below 20 Hz.*is the time's unit right"),
}


@pytest.mark.parametrize("case", WRONG)
def test_mistakes_in_the_json(tmp_path, case):
    changes, said = WRONG[case]
    path = tmp_path / "layout.json"
    path.write_text("{" if changes is None else json.dumps(layout(**changes)))
    raw = written(tmp_path / "raw", {"ann.csv": table(rows())})
    with pytest.raises(UserError, match=said) as caught:
        prepare.main(prepare.get_args(["-d", "mine", "--raw", str(raw), "--recordings", str(path)]))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "project").iterdir())


BROKEN = {
    "empty file": ("", "empty"),
    "header alone": (table([]), "no rows"),
    "text in a column of numbers": (
        table([r[:3] + ["abc"] + r[4:] for r in rows(8)]),
        "line 2: az is 'abc', no number",
    ),
    "infinite": (table([r[:3] + ["inf"] + r[4:] for r in rows(8)]), "line 2: az is 'inf'"),
    "every eighth cell empty": (
        table([r if i % 8 else r[:3] + [""] + r[4:] for i, r in enumerate(rows(8))]),
        "az is empty",
    ),
    "short rows": (table([r[:4] for r in rows(8)]), "gx is empty"),
    "other text": (b"\xff\xfe\x00,1\n2,3\n", "no column|empty"),
    "too short": (table(rows(5)), "6 s of a window"),
    "header twice": (table(rows(8), ["t", "ax", "ax", "az", "gx", "gy", "gz", "what"]), "more than one|no column 'ay'"),
    "more cells than names": (
        table(rows(8), ["t", "ax", "ay", "az", "gx", "gy", "gz", "what"][:7]),
        "7 names, but 8 cells|no column",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_recordings(tmp_path, case):
    content, said = BROKEN[case]
    with pytest.raises(UserError, match=said) as caught:
        convert(tmp_path, {"ann.csv": content})
    assert "\n" not in str(caught.value)


def test_empty_folder(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "l.json").write_text(json.dumps(LAYOUT))
    with pytest.raises(UserError, match="is empty"):
        recordings.convert(Layout.load(tmp_path / "l.json"), tmp_path / "raw")


# ---------------------------------------------------------------------------------------------- the example


def both(raw):
    """(windows of the shipped example, windows of the built-in converter), four classes."""
    own, _ = recordings.convert(Layout.load(EXAMPLE), raw)
    with open_source(raw, 1 << 30, motion.FILE) as source:
        built_in, _ = windows.four_classes(motion.convert(source, partial=True))
    return own, built_in


def test_example_equals_the_built_in_converter_on_slow_motion(tmp_path):
    """Below 2 Hz both rules do the same to within a few per cent of the motion's amplitude."""
    t = np.arange(1250)[:, None] / 50
    slow = np.sin(2 * np.pi * 0.7 * t + np.arange(6)) + 0.5 * np.sin(2 * np.pi * 1.6 * t)
    files = {
        f"A_DeviceMotion_data/{trial}/sub_{user}.csv": motion_file(slow * user / 24 + [0, 1, 0, 0, 0, 0])
        for trial in ("wlk_7", "ups_3", "jog_9")
        for user in (3, 24)
    }
    own, built_in = both(zipped(tmp_path / "m.zip", files))
    assert own.activity.tolist() == built_in.activity.tolist() == ["upstairs"] * 8 + ["walking"] * 8
    assert own.columns["user"][1] == ["3", "24"]  # only the users that are there
    error = (own.data - built_in.data)[..., 3:]
    assert np.abs(error).max() < 0.12 and np.sqrt((error**2).mean()) < 0.04
    assert np.abs((own.data - built_in.data)[..., :3]).max() < 0.12 * G


def test_example_on_the_real_sample():
    """Same windows, order and labels; the signals agree below 2 Hz, and differ where averaging lets high ones fold."""
    own, built_in = both(shared("raw/motionsense_A_DeviceMotion_data_sample.zip"))
    assert own.activity.tolist() == built_in.activity.tolist() and len(own.data) == 361
    assert own.columns["user"][0].tolist() == built_in.columns["user"][0].tolist()
    flat = [w.data[..., c].ravel() for c in range(6) for w in (own, built_in)]
    correlation = [np.corrcoef(flat[2 * c], flat[2 * c + 1])[0, 1] for c in range(6)]
    assert min(correlation[:3]) > 0.96 and min(correlation[3:]) > 0.97
    np.testing.assert_allclose(own.data.mean((0, 1)), built_in.data.mean((0, 1)), atol=0.005)
