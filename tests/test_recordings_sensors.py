"""The sensors in recordings: files and rows of their own, units, gravity, arrays, labels, and none of them."""

import io
import json
from datetime import datetime, timedelta

import numpy as np
import pytest
from own_recordings import (
    NAMES,
    PLAIN,
    G,
    acc,
    assert_begin,
    body,
    clock,
    every,
    gravity,
    gyro,
    linear,
    plain,
    read,
    refused,
    table,
)
from raw_files import project, run, written, zipped  # noqa: F401

from bookkeeping.artefacts import read_json
from dataset.description import Layout

XYZ = list("xyz")
APART = {  # a file a sensor
    "time": {"column": "t", "unit": "s"},
    "acc": {"file": "acc.csv", "columns": XYZ, "unit": "m/s2", "gravity": True},
    "gyro": {"file": "gyro.csv", "columns": XYZ, "unit": "rad/s"},
}


def of_sensor(t, values, **form):
    return table(["t", *XYZ], t, values, **form)


# --------------------------------------------------------------------------------------- sensors, files, rows, units


def test_separate_files_with_their_own_clocks_and_rates(tmp_path):
    a, w = clock(40, 100), clock(39, 59.4, start=-0.13)
    files = {"acc.csv": of_sensor(a, acc(a)), "gyro.csv": of_sensor(w, gyro(w))}
    assert_begin(read(tmp_path, files, APART)[0].data, every(0, 38.8))
    own = APART | {"gyro": APART["gyro"] | {"time": {"column": "t", "unit": "ms"}}}
    files["gyro.csv"] = of_sensor(1000 * w, gyro(w))
    assert_begin(read(tmp_path, files, own)[0].data, every(0, 38.8))


def test_a_gap_of_one_sensor_is_a_gap_of_both(tmp_path):
    a, w = clock(40), clock(40)
    w = w[(w < 14) | (w > 17.5)]
    windows, _ = read(tmp_path, {"acc.csv": of_sensor(a, acc(a)), "gyro.csv": of_sensor(w, gyro(w))}, APART)
    assert_begin(windows.data, every(0, 14), every(17.52, 40), within=0.05)


def test_sensors_that_share_no_time_are_refused(tmp_path):
    a = clock(20)
    refused("no stretch", tmp_path, {"acc.csv": of_sensor(a, acc(a)), "gyro.csv": of_sensor(a + 1000, gyro(a))}, APART)


def test_several_recordings_of_several_files(tmp_path):
    """One a folder; or in one folder, told apart by a text in their names."""
    files, flat = {}, {}
    for name, begin in (("a 1", 0), ("b", 100)):
        t = clock(20)
        for sensor, values in (("acc", acc(t + begin)), ("gyro", gyro(t + begin))):
            files[f"{name}/{sensor}.csv"] = flat[f"{sensor}-{name}.csv"] = of_sensor(t, values)
    windows, _ = read(tmp_path, files, APART)
    assert_begin(windows.data, every(0, 20), every(100, 120))
    spec = APART | {"path": r"-(?P<who>.*)\.csv$", "recording": {"path": "who"}, "user": {"path": "who"}}
    spec |= {"acc": APART["acc"] | {"file": "acc-*.csv"}, "gyro": APART["gyro"] | {"file": "gyro-*.csv"}}
    windows, _ = read(tmp_path, flat, spec)
    assert_begin(windows.data, every(0, 20), every(100, 120))
    assert windows.columns["user"][1] == ["a 1", "b"]
    del spec["recording"]
    refused("more than one file 'gyro-\\*.csv'", tmp_path, flat, spec)


def events(t, late=0.0):
    """Rows [sensor, t, x, y, z] of both sensors, the gyroscope's in batches of `late` s."""
    rows = [(s, "1", s, *x) for s, x in zip(t.tolist(), acc(t).tolist(), strict=True)]
    w = t[:-7] + 0.007
    rows += [
        (s if not late else np.ceil(s / late) * late, "4", s, *x)
        for s, x in zip(w.tolist(), gyro(w).tolist(), strict=True)
    ]
    return sorted(rows)


@pytest.mark.parametrize("late", [0.0, 0.2])
def test_one_row_a_sensor_event(tmp_path, late):
    rows = events(clock(20), late)
    text = "sensor,t,x,y,z\n" + "".join(",".join(map(str, row[1:])) + "\n" for row in rows)
    spec = {"time": {"column": "t", "unit": "s"}}
    spec |= {"acc": {"columns": XYZ, "unit": "m/s2", "gravity": True, "where": {"sensor": 1}}}
    spec |= {"gyro": {"columns": XYZ, "unit": "rad/s", "where": {"sensor": "4"}}}
    assert_begin(read(tmp_path, {"s.csv": text}, spec)[0].data, every(0, 19.8))
    spec["gyro"]["where"] = {"sensor": "gyroscope"}
    refused("s.csv has no row of gyro", tmp_path, {"s.csv": text}, spec)


def test_rows_that_carry_the_newest_sample_of_every_sensor(tmp_path):
    """A row an event: the other sensor's values stand there again, zeros before its first."""
    t, w = clock(20, 100), clock(18.4, 40, start=1.533)
    newest = np.searchsorted(w, t, side="right") - 1
    values = np.where((newest >= 0)[:, None], gyro(w[newest]), 0)
    spec = PLAIN | {"rows": "events"}
    text = table(NAMES, t, acc(t), values)
    assert_begin(read(tmp_path, {"s.csv": text}, spec)[0].data, every(1.533, 19.9), near=(0.1, 0.15), within=0.07)
    own = table([*NAMES, "tg"], t, acc(t), values, np.where(newest >= 0, w[newest], -160_000))
    spec = PLAIN | {"rows": "newest", "gyro": PLAIN["gyro"] | {"time": {"column": "tg", "unit": "s"}}}
    spec |= {"acc": PLAIN["acc"] | {"time": PLAIN["time"]}}
    assert_begin(read(tmp_path, {"s.csv": own}, spec)[0].data, every(1.533, 19.9), within=0.07)


@pytest.mark.parametrize(("unit", "scale"), [("m/s2", 1), ("m/s²", 1), ("g", 1 / G), ("g/64", 64 / G)])
def test_units(tmp_path, unit, scale):
    t = clock(20)
    text = table(NAMES, t, acc(t) * scale, gyro(t) * 180 / np.pi)
    spec = PLAIN | {"acc": PLAIN["acc"] | {"unit": unit}, "gyro": PLAIN["gyro"] | {"unit": "deg/s"}}
    assert_begin(read(tmp_path, {"s.csv": text}, spec)[0].data, every(0, 20))


@pytest.mark.parametrize("sign", ["android", "ios", None])
def test_gravity_apart_and_the_sign(tmp_path, sign):
    t = clock(20)
    turn = -1 if sign == "ios" else 1
    header = [*NAMES, "vx", "vy", "vz"]
    text = table(header, t, turn * linear(t) / G, gyro(t), turn * gravity(t) / G)
    mine = {"columns": NAMES[1:4], "unit": "g"} | ({"sign": sign} if sign else {})
    spec = PLAIN | {"acc": mine | {"gravity": header[7:]}}
    assert_begin(read(tmp_path, {"s.csv": text}, spec)[0].data, every(0, 20))
    v = clock(21, 60, start=-0.4)  # gravity in a file of its own, on a clock and in a unit of its own
    files = {
        "acc.csv": of_sensor(t, turn * linear(t) / G),
        "gyro.csv": of_sensor(t, gyro(t)),
        "g.csv": of_sensor(v, turn * gravity(v)),
    }
    spec = APART | {
        "acc": APART["acc"] | mine | {"columns": XYZ, "gravity": {"file": "g.csv", "columns": XYZ, "unit": "m/s2"}}
    }
    assert_begin(read(tmp_path, files, spec)[0].data, every(0, 20))
    refused("no file 'g.csv' beside it", tmp_path, {k: v for k, v in files.items() if k != "g.csv"}, spec)


def test_without_gravity_a_line_says_that_it_is_needed(tmp_path):
    for given in ({"gravity": False}, {}):
        spec = PLAIN | {"acc": {"columns": NAMES[1:4], "unit": "m/s2"} | given}
        refused("gravity", tmp_path, {"s.csv": plain(clock(20))}, spec)


# ------------------------------------------------------------------------------------------------------ arrays


def test_parquet(tmp_path):
    import polars

    t = clock(20)
    columns = dict(zip(NAMES[1:], body(t).T, strict=True)) | {"what": ["walk "] * len(t)}
    spec = PLAIN | {"label": {"column": "what"}, "activities": {"walk": "walking"}}
    start = datetime(2024, 5, 1)
    stamps = {"s": t, "ms": np.round(1000 * t).astype(int), "iso": [start + timedelta(seconds=s) for s in t.tolist()]}
    for unit, time in stamps.items():
        polars.DataFrame({"t": time} | columns).write_parquet(content := io.BytesIO())
        mine = spec | {"time": {"column": "t", "unit": unit}, "files": "*.parquet"}
        windows, _ = read(tmp_path, {"s.parquet": content.getvalue()}, mine)
        assert_begin(windows.data, every(0, 20))
        assert set(windows.activity) == {"walking"}
    refused("s.parquet is no Parquet file", tmp_path, {"s.parquet": content.getvalue()[:2000]}, mine)


def saved(write, *arguments, **arrays):
    write(content := io.BytesIO(), *arguments, **arrays)
    return content.getvalue()


def test_arrays_of_numpy_and_matlab(tmp_path):
    from scipy.io import savemat

    t, w = clock(20), clock(20, 59.4)
    both = np.column_stack([t, body(t)]).astype(np.float32)
    numbered = {"time": {"column": 1, "unit": "s"}, "acc": PLAIN["acc"] | {"columns": [2, 3, 4]}}
    numbered |= {"gyro": PLAIN["gyro"] | {"columns": [5, 6, 7]}}
    assert_begin(read(tmp_path, {"s.npy": saved(np.save, both)}, numbered | {"files": "*.npy"})[0].data, every(0, 20))
    arrays = {"acc": acc(t), "t": t[:, None], "w": gyro(w), "tw": w[None]}
    spec = {
        "acc": {
            "columns": [f"acc.{i}" for i in (1, 2, 3)],
            "unit": "m/s2",
            "gravity": True,
            "time": {"column": "t", "unit": "s"},
        }
    }
    spec |= {"gyro": {"columns": [f"w.{i}" for i in (1, 2, 3)], "unit": "rad/s", "time": {"column": "tw", "unit": "s"}}}
    for name, content in (("s.npz", saved(np.savez, **arrays)), ("s.mat", saved(savemat, arrays))):
        assert_begin(read(tmp_path, {name: content}, spec | {"files": "s.*"})[0].data, every(0, 19.9))
        refused(f"{name} cannot be read", tmp_path, {name: content[:300]}, spec | {"files": "s.*"})


def test_arrays_that_hold_no_numbers(tmp_path):
    from scipy.io import savemat

    opaque = saved(
        savemat,
        {"None": np.array([("Acceleration", "MCOS", "timetable")], dtype=[(k, "O") for k in ("s0", "s1", "s2")])},
    )
    spec = PLAIN | {"files": "s.*"}
    refused(
        "s.mat holds no array of numbers; timetables and other objects of MATLAB are not read: save arrays",
        tmp_path,
        {"s.mat": opaque},
        spec,
    )
    pickled = saved(np.save, np.array([{"t": 1}], dtype=object))
    refused("s.npy cannot be read", tmp_path, {"s.npy": pickled}, spec)
    short = saved(np.savez, acc=acc(clock(20)), t=clock(10))
    mine = {
        "files": "s.*",
        "time": {"column": "t", "unit": "s"},
        "acc": {"columns": ["acc.1", "acc.2", "acc.3"], "unit": "m/s2", "gravity": True},
    }
    refused("500 times for 1000 samples of acc", tmp_path, {"s.npz": short}, mine)


# ------------------------------------------------------------------------------------------------ labels and none


def test_an_annotation_file(tmp_path):
    marks = "time,text\n0.0,walk\n15.0,\n20.0,stairs\n33.0,walk\n"
    spec = PLAIN | {"files": "s.csv", "activities": {"walk": "walking", "stairs": "upstairs"}}
    spec |= {"label": {"file": "marks.csv", "column": "text", "time": {"column": "time", "unit": "s"}}}
    windows, notes = read(tmp_path, {"s.csv": plain(clock(46)), "marks.csv": marks}, spec)
    parts = {"walking": [every(0, 15), every(33, 46)], "upstairs": [every(20, 33)]}
    for name, expected in parts.items():
        assert_begin(windows.data[windows.activity == name], *expected)
    assert any("without label" in line or "shorter than" in line for line in notes)
    late, _ = read(tmp_path, {"s.csv": plain(clock(46)), "marks.csv": "time,text\n20,walk\n"}, spec)
    assert_begin(late.data, every(20, 46))  # before the first mark there is none
    bare, _ = read(tmp_path, {"s.csv": plain(clock(46))}, spec)
    assert set(bare.activity) == {""}
    refused(
        "s.csv: label 'dance' is not in 'activities'",
        tmp_path,
        {"s.csv": plain(clock(46)), "marks.csv": "time,text\n0,dance\n"},
        spec,
    )


def test_unlabelled_sets_and_sets_without_gyroscope(tmp_path, capsys):
    """As they are kept: -1, NaN in three columns, "gyroscope": false; one line says each."""
    t = clock(60)
    rest = body(t) * [0.01, 0.05, 0.01, 0.2, 0.2, 0.2] + [0, 0, 9.7, 0, 0, 0]
    for name, sensors in (("both", 6), ("bare", 3)):
        header = NAMES[: 1 + sensors]
        raw = written(tmp_path / name, {"s.csv": table(header, t, rest[:, :sensors])})
        spec = {key: value for key, value in PLAIN.items() if key != "gyro" or sensors == 6}
        (tmp_path / f"{name}.json").write_text(json.dumps(spec))
        run("-d", name, "--raw", raw, "--recordings", tmp_path / f"{name}.json")
        said = capsys.readouterr().out
        data, label = (np.load(f"dataset/{name}/{kind}_20_120.npy") for kind in ("data", "label"))
        entry = read_json(f"dataset/{name}/entry.json", "entry")["20_120"]
        assert (label == -1).all() and "without labels" in said and "no labels (-1)" in said
        assert np.isnan(data[..., 3:]).all() == (sensors == 3) and np.isfinite(data[..., :sensors]).all()
        assert entry.get("gyroscope", True) is (sensors == 6)
        assert ("no gyroscope" in said) == (sensors == 3)


def test_recordings_with_and_without_gyroscope_are_two_sets(tmp_path):
    t = clock(20)
    files = {"s1.csv": plain(t), "s2.csv": table(NAMES[:4], t, acc(t))}
    refused("no column 'gx'", tmp_path, files)


def test_classes_of_ones_own(tmp_path):
    t = clock(30)
    what = ["run" if s < 15 else "3" for s in t]
    text = table([*NAMES, "what"], t, body(t), what)
    spec = PLAIN | {
        "label": {"column": "what"},
        "classes": ["running", "cycling"],
        "activities": {"run": "running", "3": "cycling"},
    }
    windows, _ = read(tmp_path, {"s.csv": text}, spec)
    assert windows.activity.tolist() == ["running"] * 2 + ["cycling"] * 2
    assert Layout(spec, "x").classes == ["running", "cycling"]
