"""Recordings that went wrong somehow: each gives right windows or one line, never a traceback or a wrong window."""

import importlib.util
import json
import re
import sys

import numpy as np
import pytest
from own_recordings import NAMES, PLAIN, acc, begins, body, clock, gyro, joined, plain, read, refused, rows_of, table
from raw_files import project, run, shared, written, zipped  # noqa: F401
from test_recordings_apps import CASES

from bookkeeping.commands import UserError
from dataset import recordings
from dataset.description import Layout

T = clock(40)
SHAPES = {  # name: (text, description)
    "plain": (plain(T), PLAIN),
    "decimal commas": (plain(T, sep=";", point=","), PLAIN),
    "ms, quoted": (
        table([f'"{name}"' for name in NAMES], [f"{1000 * s:.0f}" for s in T], body(T)),
        PLAIN | {"time": {"column": "t", "unit": "ms"}},
    ),
    "coarse stamps": (plain(np.floor(T), T), PLAIN | {"time": {"column": "t", "unit": "s", "rate": 50}}),
    "labels": (
        table([*NAMES, "what"], T, body(T), ["walking" if s < 20 else "upstairs" for s in T]),
        PLAIN | {"label": {"column": "what"}},
    ),
    "to be sorted": (plain(T), PLAIN | {"time": {"column": "t", "unit": "s", "sort": True}}),
    "100 Hz": (plain(clock(40, 100)), PLAIN),
}


def cells(row):
    separator = ";" if ";" in row else ","
    return row.split(separator), separator


def edited(rows, number, change):
    """Rows with the cells of one changed in place."""
    mine, separator = cells(rows[number])
    change(mine)
    return [*rows[:number], separator.join(mine), *rows[number + 1 :]]


def bad_cells(rows, rng):
    for number in rng.choice(len(rows) - 10, 25, replace=False) + 5:
        text = str(rng.choice(["", "NaN", "null", "abc", "-", "inf", "1e999"]))
        rows = edited(rows, number, lambda mine, text=text: mine.__setitem__(rng.integers(len(mine)), text))
    return rows


def without(rows, rng, share):
    return [row for row in rows if rng.random() > share]


MUTATIONS = {  # of the rows below the header
    "1 % lost": lambda rows, rng: without(rows, rng, 0.01),
    "5 % lost": lambda rows, rng: without(rows, rng, 0.05),
    "half of them lost": lambda rows, rng: without(rows, rng, 0.5),
    "1 s lost": lambda rows, rng: rows[:700] + rows[750:],
    "a row twice": lambda rows, rng: rows[:333] + rows[332:],
    "ten rows again": lambda rows, rng: rows[:333] + rows[323:],
    "two rows swapped": lambda rows, rng: rows[:600] + rows[601:599:-1] + rows[602:],
    "second half first": lambda rows, rng: rows[1000:] + rows[:1000],
    "all there twice": lambda rows, rng: rows + rows,
    "backwards": lambda rows, rng: rows[::-1],
    "shuffled": lambda rows, rng: [rows[i] for i in rng.permutation(len(rows))],
    "bad cells": bad_cells,
    "cells missing": lambda rows, rng: edited(rows, 800, lambda mine: mine.pop()),
    "cells too many": lambda rows, rng: edited(rows, 800, lambda mine: mine.extend(["5", "6"])),
    "a cell put in": lambda rows, rng: edited(rows, 800, lambda mine: mine.insert(2, "5")),
    "text between": lambda rows, rng: [*rows[:500], "### paused ###", "~~", *rows[500:]],
    "blank lines": lambda rows, rng: [x for i, row in enumerate(rows) for x in ([row] if i % 50 else ["", row])],
    "header again": lambda rows, rng: [*rows[:900], ",".join(NAMES), *rows[900:]],
    "cut off": lambda rows, rng: [*rows[:1500], rows[1500][:17]],
    "3 s alone": lambda rows, rng: rows[:150],
    "2 rows alone": lambda rows, rng: rows[:2],
    "a third of the rate": lambda rows, rng: rows[::3],
    "slow in between": lambda rows, rng: rows[:600] + rows[600:1200:6] + rows[1200:],
    "quotes left open": lambda rows, rng: edited(rows, 800, lambda mine: mine.__setitem__(1, '"' + mine[1])),
    "null bytes": lambda rows, rng: edited(rows, 800, lambda mine: mine.__setitem__(1, "\0\0")),
    "a jump of the clock": lambda rows, rng: [moved(row, 0, 3.3) if i > 900 else row for i, row in enumerate(rows)],
}


def moved(row, at, more):
    """The row with a number added to one of its cells."""
    mine, separator = cells(row)
    mine[at] = f"{float(mine[at].replace(',', '.')) + more:.6f}".replace(".", "," if separator == ";" else ".")
    return separator.join(mine)


@pytest.mark.parametrize("shape", SHAPES)
def test_mutated_recordings(tmp_path, shape):
    """Lost rows and values may blur what lies beside them, never show another movement or another time's."""
    text, spec = SHAPES[shape]
    header, rows = rows_of(text)
    rng, given = np.random.default_rng(5), 0
    for name, mutate in MUTATIONS.items():
        try:
            windows, notes = read(tmp_path, {"s.csv": joined(header, mutate(rows, rng))}, spec)
        except UserError as error:
            assert "\n" not in str(error), name
            continue
        coarse = shape == "coarse stamps" and name not in ("a row twice", "blank lines", "null bytes")
        try:
            found = begins(windows.data, near=(2.4, 0.5) if not coarse else (9, 2))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
        assert (found > -0.1).all() and (found < 34.5).all(), name
        given += 1
    assert given > 8


def test_mutated_files_of_apps(tmp_path):
    """Bytes cut out, doubled or overwritten anywhere in any file of a known app's."""
    rng, ends = np.random.default_rng(7), {"windows": 0, "refused": 0}
    kinds = ("cut", "zeros", "half", "twice")
    for number, (case, (files, _, _)) in enumerate(CASES.items()):
        for kind in kinds[number % 4 : number % 4 + 1]:
            name = sorted(name for name in files if len(files[name]) > 5000)[-1]
            content = files[name].encode()
            at = int(rng.integers(1000, len(content) - 2000))
            content = {
                "cut": content[:at] + content[content.index(b"\n", at + 500) :],
                "zeros": content[:at] + b"\0" * 300 + content[at + 300 :],
                "twice": content[: at + 300] + content[at:],
                "half": content[: len(content) // 2],
            }[kind]
            try:
                windows, _ = read(tmp_path, files | {name: content}, "auto")
            except UserError as error:
                assert "\n" not in str(error), (case, kind)
                ends["refused"] += 1
                continue
            try:
                begins(windows.data, near=(3, 0.8))
            except AssertionError as error:
                raise AssertionError(f"{case}, {kind}: {error}") from error
            ends["windows"] += 1
    assert ends["windows"] > 20, ends


# ------------------------------------------------------------------------------------------------------- bad input


def test_an_archive_without_a_recording(tmp_path):
    zipped(tmp_path / "a.zip", {"readme.txt": "hello", "photo.jpg": b"\xff\xd8"})
    zipped(tmp_path / "b.zip", {"photo.jpg": b"\xff\xd8"})
    refused("is of none of", tmp_path, tmp_path / "a.zip", "auto")
    refused("readme.txt has no column 'ax'", tmp_path, tmp_path / "a.zip")
    refused("b.zip does not hold the files of", tmp_path, tmp_path / "b.zip")
    for name in ("a.zip", "b.zip"):
        refused("of none of|does not hold", tmp_path, tmp_path / name, "auto")
    (tmp_path / "c.zip").write_bytes((tmp_path / "a.zip").read_bytes()[:-30])
    refused("c.zip is no whole zip archive|does not hold", tmp_path, tmp_path / "c.zip")


def test_three_seconds(tmp_path):
    refused(r"6 s of a window \(shorter than .*s.csv, 0.0 to 3.0 s", tmp_path, {"s.csv": plain(clock(3))})
    windows, notes = read(tmp_path, {"s.csv": plain(clock(3)), "l.csv": plain(clock(20))})
    assert len(windows.data) == 3 and notes == ["shorter than the 6 s of a window, left out: s.csv, 0.0 to 3.0 s"]


def test_one_sensor_is_missing(tmp_path):
    t = clock(20)
    refused("s.csv has no column 'gx'", tmp_path, {"s.csv": table(NAMES[:4], t, acc(t))})
    refused("s.csv has no column 'ax'", tmp_path, {"s.csv": table(["t", *NAMES[4:]], t, gyro(t))})
    empty = table(NAMES, t, acc(t), [""] * len(t), [""] * len(t), [""] * len(t))
    refused("s.csv, line 2: gx is empty, no number, as in 1000 of 1000 rows", tmp_path, {"s.csv": empty})
    late = table(NAMES, t, acc(t), *[[""] * 500 + [f"{x:.6f}" for x in column] for column in gyro(t[500:]).T])
    refused("s.csv, line 2: gx is empty", tmp_path, {"s.csv": late})


def test_another_apps_file(tmp_path):
    """A description written for one app, the files of another."""
    for case in ("axivity", "empatica_e4", "sensorlog", "shimmer", "physics_toolbox"):
        files = {name: text for name, text in CASES[case][0].items() if name in ("rec.csv", "ACC.csv")}
        refused("has no column|names, but . cells", tmp_path, files)
    numbered = {"header": False, "time": {"column": 1, "unit": "s"}, "acc": PLAIN["acc"] | {"columns": [2, 3, 4]}}
    refused("no number|below|no column", tmp_path, {"s.csv": CASES["shimmer"][0]["rec.csv"]}, numbered)


@pytest.mark.parametrize("name", ["s.csv", "s.csv.gz", "s.npy", "s.parquet"])
def test_a_file_of_5_gb_is_refused_before_it_is_read(tmp_path, name, monkeypatch):
    raw = written(tmp_path / "raw", {"small.csv": plain(clock(20))})
    with open(raw / name, "wb") as handle:
        handle.truncate(5 << 30)
    line = refused(f"{name} is 5.4 GB and files are read whole: split it", tmp_path, raw, PLAIN | {"files": "s.*"})
    assert "Error" not in line


def test_names_with_spaces_and_umlauts(tmp_path):
    files = {
        "Jürgen Groß/Gehen 1 (Kopie).csv": plain(clock(20)),
        "Ана/№ 2;3.csv": plain(clock(20), clock(20, start=50)),
    }
    spec = PLAIN | {"path": r"(?P<who>[^/]+)/[^/]*$", "user": {"path": "who"}}
    for where in (files, zipped(tmp_path / "Aufnahmen von 3.zip", files)):
        windows, _ = read(tmp_path, where, spec)
        assert windows.columns["user"][1] == ["Jürgen Groß", "Ана"] and len(windows.data) == 6
    (tmp_path / "my json.json").write_text(json.dumps(spec), encoding="utf-8")
    raw = written(tmp_path / "roh daten ü", {name: plain(clock(60)) for name in files})
    with pytest.raises(UserError, match="exact copies|problem"):  # the same recording twice
        run("-d", "mine", "--raw", raw, "--recordings", tmp_path / "my json.json")


# ------------------------------------------------------------------- what is beside the project: cases of others' hand


def module(name):
    """A script of shared/cases as a module, and its neighbours importable while the test runs."""
    path = shared(f"cases/{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    made = importlib.util.module_from_spec(spec)
    sys.modules[name] = made
    spec.loader.exec_module(made)
    return made


SENSORS = {kind: [f"{kind}_{axis}" for axis in "xyz"] for kind in ("acc", "gyro")}
WIDE = {
    "time": {"column": "time", "unit": "s"},
    "acc": {"columns": SENSORS["acc"], "unit": "m/s2", "gravity": True},
    "gyro": {"columns": SENSORS["gyro"], "unit": "rad/s"},
}
EVENTS = {"columns": list("xyz"), "unit": "m/s2", "gravity": True, "where": {"sensor": "accelerometer"}}
OTHERS = {
    "wisdm.txt": {
        "header": False,
        "row_end": ";",
        "time": {"column": 3, "unit": "ns"},
        "acc": {"columns": [4, 5, 6], "unit": "m/s2", "gravity": True},
        "label": {"column": 2},
    },
    "long.csv": {
        "time": {"column": "time", "unit": "ms"},
        "acc": EVENTS,
        "gyro": {"columns": list("xyz"), "unit": "rad/s", "where": {"sensor": "gyroscope"}},
    },
    "iso.csv": WIDE | {"time": {"column": "time", "unit": "iso"}, "label": {"column": "activity"}},
    "table.parquet": WIDE | {"label": {"column": "activity"}},
    "arrays.mat": {
        kind: WIDE[kind] | {"columns": [f"{kind}.{i}" for i in (1, 2, 3)], "time": {"column": f"{kind}_t", "unit": "s"}}
        for kind in ("acc", "gyro")
    },
    "array.npy": {
        "time": {"rate": 50},
        "acc": WIDE["acc"] | {"columns": [1, 2, 3]},
        "gyro": WIDE["gyro"] | {"columns": [4, 5, 6]},
    },
    **dict.fromkeys(("no_label.csv", "empty_cell.csv", "units_row.csv"), WIDE),
}


def test_all_layouts_of_make_formats(tmp_path, monkeypatch):
    shared("cases/make_formats.py")
    monkeypatch.syspath_prepend(str(shared("cases")))
    for name in ("movement", "make_formats", "check_formats"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    module("movement")
    made, checks = module("make_formats"), module("check_formats")
    made.write(tmp_path / "f", made.CASES)
    for name in made.CASES:
        spec = OTHERS.get(name, "auto")
        windows, _ = read(tmp_path, tmp_path / "f" / name, spec)
        assert checks.check(name, windows.data, made.CASES), name
        if made.CASES[name][1]["labels"]:
            assert windows.activity.tolist() == ["walking"] * 4 + ["upstairs"] * 3 + ["downstairs"] * 2


RIGHT = {  # windows, or what the refusal says
    "a1": 20,
    "b1": 20,
    "b4": 10,
    "k1": 20,
    "c1": 30,
    "d1": None,
    "d2": None,
    "n1": "cannot serve acc and gyro",
    "n2_cell": 20,
    "n2_units": 10,
    "n2_comma": 10,
    "n2_iso": "unit iso",
    "l1": 10,
}


@pytest.mark.parametrize("case", RIGHT)
def test_cases_of_make_cases(tmp_path, case):
    made = module("make_cases")
    folder = tmp_path / case
    folder.mkdir()
    getattr(made, case)(folder)
    right = RIGHT[case]
    if isinstance(right, str):
        with pytest.raises(UserError, match=right):
            recordings.convert(Layout.load(folder / "mine.json"), folder / "raw")
        return
    windows, notes = recordings.convert(Layout.load(folder / "mine.json"), folder / "raw")
    notes = "\n".join(notes.lines())
    z = np.abs(windows.data[..., 2]).max()
    assert right is None or len(windows.data) == right
    if case in ("d1", "d2"):
        assert len(windows.data) >= 8 and z < {"d1": 38, "d2": 11.5}[case]
    if case == "b4":
        assert abs(windows.data[..., 2].mean() - 9.8) < 0.1 and np.abs(windows.data[..., 5]).max() < 0.75
    said = {"b1": "line 3002", "k1": "60.0 to 90.0 s at 10 Hz", "c1": "s4/rec.csv", "n2_cell": "s2.csv, 1 rows"}
    assert re.search(said.get(case, ""), notes), notes
    if case == "l1":
        assert set(windows.activity) == {"walking"}
