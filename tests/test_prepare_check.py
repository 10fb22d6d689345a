"""--check and --figure, and that no half data set is ever used: prepared sets with one thing wrong each."""

import json
import subprocess
import sys

import numpy as np
import pytest
from raw_files import ROOT

from bookkeeping.commands import UserError
from dataset import check, figure, prepare, store
from dataset.windows import CLASSES, Windows


def good_windows(n=80, seed=0):
    """Plausible windows: a quarter of each class, 4 users, 2 positions."""
    rng = np.random.default_rng(seed)
    kind = np.arange(n) % 4
    t = np.arange(120) / 20
    moving = (kind != 3)[:, None, None]
    wave = np.sin(2 * np.pi * 1.8 * t[:, None] + rng.uniform(0, 6, (n, 1, 6))) * np.array([3, 3, 3, 0.8, 0.8, 0.8])
    data = wave * moving + rng.normal(0, 0.02, (n, 120, 6)) + np.array([0, 0.5, 9.8, 0, 0, 0])
    columns = {"position": (np.arange(n) // 4 % 2, ["belt", "wrist"]), "user": (np.arange(n) // 20, list("abcd"))}
    return Windows(data.astype(np.float32), np.array(CLASSES)[kind], columns)


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    """dataset/mine in an empty folder."""
    monkeypatch.chdir(tmp_path)
    store.save_dataset("mine", good_windows(), {"command": "prepare"})


def run(*argv):
    return prepare.main(prepare.get_args([str(a) for a in argv]))


def problems():
    return "\n".join(check.check("mine").problems)


def change(kind, function):
    """Replace the prepared data or label by function(it), as somebody would who did it by hand."""
    path = f"dataset/mine/{kind}_20_120.npy"
    np.save(path, function(np.load(path)))
    (path := store.paths("mine")[2]).unlink(missing_ok=True)


def test_a_good_set_passes_with_its_table(capsys):
    report = run("--check", "mine")["mine"]
    assert report.problems == [] and report.notes == []
    text = capsys.readouterr().out
    for line in ("80 windows", "walking", "sitting&standing", "position", "wrist", "no problems found"):
        assert line in text
    assert "  wrist                        40   50.0%" in text


def test_float64_as_released_passes():
    change("data", lambda data: data.astype(np.float64))
    change("label", lambda label: label.astype(np.float64))
    assert problems() == ""


def scaled(slice_, factor):
    def apply(data):
        data[..., slice_] *= factor
        return data

    return lambda: change("data", apply)


def edited(kind, where, value):
    def apply(array):
        array[where] = value
        return array

    return lambda: change(kind, apply)


def clipped():
    change("data", lambda data: np.clip(data, -2.0, 11.0))


def no_gravity():
    change("data", lambda data: data - np.array([0, 0.5, 9.8, 0, 0, 0], np.float32))


PROBLEMS = {
    "acc in g": (scaled(slice(0, 3), 1 / 9.80665), "is it in g"),
    "acc converted twice": (scaled(slice(0, 3), 9.80665), "9.80665 twice"),
    "without gravity": (no_gravity, "without gravity"),
    "gyro in deg/s": (scaled(slice(3, 6), 180 / np.pi), "deg/s"),
    "gyro converted twice": (scaled(slice(3, 6), np.pi / 180 / 2), "converted twice"),
    "one user in g": (
        lambda: change("data", lambda d: d * np.where(np.arange(80) // 20 == 2, 0.1, 1)[:, None, None]),
        "user c: median .acc. of still windows is 0.98",
    ),
    "a dead channel": (edited("data", (slice(0, 40), slice(None), 4), 0.5), "gyro y does not change"),
    "clipped": (clipped, "acc z is clipped"),
    "copies": (lambda: change("data", lambda d: np.concatenate([d[:79], d[10:11]])), "exact copies.*79 = 10"),
    "labels from 1": (lambda: change("label", lambda label: label + [1, 0, 0]), "start at 1"),
    "label out of range": (edited("label", (3, slice(None), 2), 9), "column 2 holds 0 to 9"),
    "negative label": (edited("label", (3, slice(None), 0), -1), "column 0"),
    "label changes": (edited("label", (slice(5, 7), slice(60, None), 0), 0), "activity label changes"),
    "a column too many": (
        lambda: change("label", lambda label: np.concatenate([label, label[..., :1]], axis=2)),
        "has 4 label columns",
    ),
    "size": (lambda: (change("data", lambda d: d[:60]), change("label", lambda label: label[:60])), "says size 80"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_problems_are_listed_and_refused(case, capsys):
    spoil, said = PROBLEMS[case]
    spoil()
    with pytest.raises(UserError, match=r"problem\(s\) found in dataset/mine"):
        run("--check", "mine")
    listed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("problem: ")]
    assert any(__import__("re").search(said, line) for line in listed), listed


MALFORMED = {
    "not finite": (edited("data", (3, 4, 5), np.nan), "NaN"),
    "another length": (lambda: change("data", lambda d: d[:, :100]), "shape"),
    "fewer labels": (lambda: change("label", lambda label: label[:-1]), "shape"),
    "text": (lambda: change("label", lambda label: label.astype(str)), "not numbers"),
    "no windows": (lambda: (change("data", lambda d: d[:0]), change("label", lambda d: d[:0])), "no windows"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_files_are_refused_at_once(case):
    spoil, said = MALFORMED[case]
    spoil()
    with pytest.raises(UserError, match=said) as caught:
        run("--check", "mine")
    assert "\n" not in str(caught.value) and "dataset/mine" in str(caught.value)


def test_check_script_has_status_2():
    scaled(slice(0, 3), 0.1)()
    script = [sys.executable, str(ROOT / "dataset" / "prepare.py"), "--check", "mine"]
    result = subprocess.run(script, capture_output=True, text=True)
    assert result.returncode == 2 and "problem: median |acc| is 0.98" in result.stdout
    assert result.stderr.startswith("error: 1 problem(s)") and result.stderr.count("\n") == 1


def test_check_in_pieces_changes_nothing(monkeypatch):
    change("data", lambda d: np.concatenate([d[:79], d[10:11]]))
    whole = check.check("mine").text()
    monkeypatch.setattr(check, "BLOCK", 7)
    assert check.check("mine").text() == whole


def test_crash_between_the_two_files_is_noticed(monkeypatch):
    """Data of the new set beside labels of the old one, as many windows as before: refused, not used."""

    def crash(path, array):
        if "label" in str(path):
            raise KeyboardInterrupt
        original(path, array)

    original = store.save_npy
    monkeypatch.setattr(store, "save_npy", crash)
    with pytest.raises(KeyboardInterrupt):
        store.save_dataset("mine", good_windows(seed=1), {})
    record = json.loads(store.paths("mine")[2].read_text())
    assert record["complete"] is False
    with pytest.raises(UserError, match="make it again"):
        check.check("mine")


def test_a_label_file_of_another_preparation_is_noticed():
    record = store.paths("mine")[2]
    kept = record.read_text()
    change("label", lambda label: label[::-1])
    record.write_text(kept)
    with pytest.raises(UserError, match="not of one preparation"):
        check.check("mine")


def test_tracked_entries_have_the_published_sizes():
    entries = json.loads((ROOT / "dataset" / "data_config.json").read_text())
    counts = {"uci": 1687, "motion": 4108, "shoaib": 7500, "hhar": 7968, "uci20": 1098, "sim": 589}
    counts |= {"dsads": 8845, "uschad": 2018}
    assert {key: entry["size"] for key, entry in entries.items()} == {f"{k}_20_120": n for k, n in counts.items()}


def test_windows_that_are_not_finite_are_never_written():
    bad = good_windows()
    bad.data[3, 4, 5] = np.inf
    with pytest.raises(UserError, match="NaN or infinity"):
        store.save_dataset("other", bad, {})
    assert not store.paths("other")[0].parent.exists()


def test_figure_is_a_picture(tmp_path):
    run("--check", "mine", "--figure", tmp_path / "mine.png")
    assert (tmp_path / "mine.png").read_bytes().startswith(b"\x89PNG") and not list(tmp_path.glob(".mine*"))
    with pytest.raises(UserError, match="png"):
        run("--check", "mine", "--figure", tmp_path / "mine.pdf")


def test_typical_windows_are_of_their_class():
    windows = good_windows()
    ids = np.array([CLASSES.index(name) for name in windows.activity])
    ids[ids == 1] = 0
    rows = figure.typical_windows(windows.data, ids, 4)
    assert rows[1] is None and [int(ids[row]) for row in rows if row is not None] == [0, 2, 3]
