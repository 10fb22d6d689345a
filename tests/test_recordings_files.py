"""The files that recordings come in: links and archives, separators, encodings, lines above and between, dates."""

import gzip
import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from own_recordings import (
    NAMES,
    PLAIN,
    acc,
    assert_begin,
    body,
    clock,
    every,
    plain,
    read,
    refused,
    table,
)
from raw_files import project, run, written, zipped  # noqa: F401

# ----------------------------------------------------------------------------------------------- which files are read


def test_links_copies_and_capitals(tmp_path):
    """Every file is read or counted with the reason; a link is followed once."""
    raw, disk = tmp_path / "raw", tmp_path / "disk"
    at = dict(zip(["one", "Two", "three", "four"], (0, 100, 200, 300), strict=True))
    files = {name: plain(clock(20), clock(20, start=begin)) for name, begin in at.items()}
    written(raw, {"one/rec.csv": files["one"], "Two/REC.CSV": files["Two"]})
    written(disk, {"three/rec.csv": files["three"], "four.csv": files["four"]})
    (raw / "three").symlink_to(disk / "three")
    (raw / "again").symlink_to(disk / "three")
    (raw / "four.csv").symlink_to(disk / "four.csv")
    (raw / "one/circle").symlink_to(raw)
    (raw / "one/gone.csv").symlink_to(disk / "nothing.csv")
    copies = [".ipynb_checkpoints/rec-checkpoint.csv", "rec.csv~", "rec.csv.bak", "~$rec.csv", "._rec.csv"]
    written(raw, {f"one/{name}": files["one"] for name in copies})
    written(raw, {"notes.json": "{}", "book.xls": b"\xd0\xcf", "__MACOSX/one/._rec.csv": "x"})
    windows, notes = read(tmp_path, raw)
    assert_begin(windows.data, *(every(begin, begin + 20) for begin in at.values()))
    text = "\n".join(notes)
    for said in ("a link to nothing: one/gone.csv", "of a kind that is not read (2): book.xls; notes.json"):
        assert said in text
    for said in ("a link to what is read already (2)", "an editor's or notebook's copy (4)"):
        assert said in text, text


def test_only_the_files_that_are_meant(tmp_path):
    files = {"s1/acc_wrist.csv": plain(clock(20)), "s1/other.csv": "a,b\n1,2\n"}
    files["Übung 1/acc wrist.CSV"] = plain(clock(20), clock(20, start=50))
    windows, notes = read(tmp_path, files, PLAIN | {"files": "acc?wrist.csv"})
    assert_begin(windows.data, every(0, 20), every(50, 70))
    assert notes == ["files not read, not a recording of the description: s1/other.csv"]


def test_a_zip_and_a_zip_within_it(tmp_path):
    inner = zipped(tmp_path / "inner.zip", {"a/Größe 1.csv": plain(clock(20)), "__MACOSX/a/._x.csv": "x"})
    outer = zipped(tmp_path / "outer.zip", {"inner.zip": inner.read_bytes(), "readme.md": "x"})
    for archive in (inner, outer):
        assert_begin(read(tmp_path, archive)[0].data, every(0, 20))


# ------------------------------------------------------------------------------- separators, decimal signs, encodings


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(("sep", "point"), [(",", "."), (";", "."), ("\t", "."), ("\t", ","), (";", ",")])
def test_separators_decimal_signs_and_line_ends(tmp_path, sep, point, end):
    t = clock(14)
    for form in ("{:.6f}", "{:.9E}", " {:+.6f} "):
        text = plain(t, sep=sep, point=point, end=end, form=form)
        assert_begin(read(tmp_path, {"s.csv": text.encode()})[0].data, every(0, 14))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
def test_encodings(tmp_path, encoding):
    t = clock(14)
    header = [*NAMES, "Tätigkeit"]
    text = table(header, t, body(t), ["Gehen über Straße"] * len(t), sep="\t", point=",")
    spec = PLAIN | {"label": {"column": "Tätigkeit"}, "activities": {"Gehen über Straße": "walking"}}
    if encoding == "latin-1":  # a cell's text may come out otherwise, its column not
        spec = PLAIN
    windows, _ = read(tmp_path, {"s.csv": text.encode(encoding)}, spec)
    assert_begin(windows.data, every(0, 14))
    assert set(windows.activity) == {"" if encoding == "latin-1" else "walking"}


def test_separators_that_are_no_comma_are_told(tmp_path):
    t = clock(14)
    for sep in (" ", "|", ":"):
        text = plain(t, sep=sep)
        assert_begin(read(tmp_path, {"s.csv": text}, PLAIN | {"separator": sep})[0].data, every(0, 14))
    two = plain(t, sep="  ")
    assert_begin(read(tmp_path, {"s.txt": two}, PLAIN | {"separator": " ", "files": "*.txt"})[0].data, every(0, 14))
    comma = plain(t, sep=";", point=",")
    told = PLAIN | {"separator": ";", "decimal": ","}
    assert_begin(read(tmp_path, {"s.csv": comma}, told)[0].data, every(0, 14))
    refused("no number", tmp_path, {"s.csv": comma}, PLAIN | {"decimal": "."})


def test_whole_numbers_and_commas_of_thousands_are_told_apart(tmp_path):
    """A decimal comma that the first rows do not show is still no other number: those rows are lost, not read wrong."""
    t = clock(14)
    values = body(t)
    rows = [[f"{x:.6f}".replace(".", ",") for x in row] for row in np.column_stack([t, values])]
    rows[0] = ["0"] * 7
    text = "\n".join([";".join(NAMES), *(";".join(row) for row in rows)]) + "\n"
    windows, _ = read(tmp_path, {"s.csv": text})
    assert_begin(windows.data, every(0, 14), near=(9, 0.3))


def test_lines_above_the_table(tmp_path):
    t = clock(14)
    meta = 'sep=,\nDevice: made up; 3, "x"\n\n# rate, 50\n'
    assert_begin(read(tmp_path, {"s.csv": meta + plain(t)})[0].data, every(0, 14))
    assert_begin(read(tmp_path, {"s.csv": meta + plain(t)}, PLAIN | {"skip": 3})[0].data, every(0, 14))
    numbered = {"header": False, "skip": 4, "time": {"column": 1, "unit": "s"}}
    numbered |= {"acc": PLAIN["acc"] | {"columns": [2, 3, 4]}, "gyro": PLAIN["gyro"] | {"columns": [5, 6, 7]}}
    assert_begin(read(tmp_path, {"s.csv": meta + table(None, t, body(t))}, numbered)[0].data, every(0, 14))


def test_no_header_and_rows_that_end_with_a_sign(tmp_path):
    """WISDM's form: numbers for columns, a semicolon at each end, now and then no z, a blank line, two in a line."""
    t = clock(30, 20)
    text = table(None, ["7"] * len(t), ["walk"] * len(t), t * 1e9, acc(t), end=";\n", form="{:.7g}")
    text = table(None, ["7"] * len(t), ["walk"] * len(t), [f"{x * 1e9 + 49e12:.0f}" for x in t], acc(t), end=";\n")
    rows = text.splitlines()
    rows[300] = rows[300].rpartition(",")[0] + ",;"
    rows[410:412] = [rows[410] + rows[411]]
    rows.insert(100, "")
    spec = {"header": False, "row_end": ";", "time": {"column": 3, "unit": "ns"}, "label": {"column": 2}}
    spec |= {"user": {"column": 1}, "acc": {"columns": [4, 5, 6], "unit": "m/s2", "gravity": True}}
    windows, notes = read(
        tmp_path, {"w.txt": "\n".join(rows) + "\n"}, spec | {"files": "*.txt", "activities": {"walk": "walking"}}
    )
    assert_begin(windows.data, every(0, 30), near=(0.5,))
    assert any("1 rows" in line for line in notes) and set(windows.activity) == {"walking"}


def test_gzip(tmp_path):
    content = gzip.compress(plain(clock(20)).encode())
    assert_begin(read(tmp_path, {"s.CSV.GZ": content})[0].data, every(0, 20))
    refused("s.csv.gz is no whole gzip file", tmp_path, {"s.csv.gz": content[:5000]})
    refused("s.csv.gz is no whole gzip file", tmp_path, {"s.csv.gz": b"t,ax\n"})


def test_cells_that_are_no_number_are_losses(tmp_path):
    t = clock(30)
    rng = np.random.default_rng(0)
    lines = plain(t).splitlines()
    for number, text in zip(
        rng.choice(np.arange(100, 1400, 7), 12, replace=False),
        ["", "NaN", "null", "-", "abc", "1.2.3"] * 2,
        strict=True,
    ):
        cells = lines[number].split(",")
        cells[rng.integers(7)] = text
        lines[number] = ",".join(cells)
    windows, notes = read(tmp_path, {"s.csv": "\n".join(lines) + "\n"})
    assert_begin(windows.data, every(0, 30), near=(0.6, 0.2))
    assert notes[-1].startswith("rows that can't be read, left out: ") and notes[-1].endswith("s.csv, 12 rows")
    lines[1:1500:9] = [line.replace(".", "..") for line in lines[1:1500:9]]
    refused(
        "s.csv, line 2: t is '0..000000', no number, as in 1[67][0-9] of 1500 rows",
        tmp_path,
        {"s.csv": "\n".join(lines)},
    )


def test_a_quotation_mark_left_open_takes_its_own_row_alone(tmp_path):
    lines = plain(clock(30)).splitlines()
    lines[700] = '"' + lines[700]
    windows, notes = read(tmp_path, {"s.csv": "\n".join(lines) + "\n"})
    assert_begin(windows.data, every(0, 30), near=(0.6, 0.2))
    assert len(notes) == 1 and notes[0].endswith("s.csv, 1 rows")


# ------------------------------------------------------------------------------------------------------- time


@pytest.mark.parametrize(("unit", "factor"), [("s", 1), ("ms", 1e3), ("us", 1e6), ("µs", 1e6), ("ns", 1e9)])
@pytest.mark.parametrize("start", [0, 1_735_689_600])
def test_units_of_time(tmp_path, unit, factor, start):
    t = clock(20)
    stamps = [str(round((start + x) * factor)) if factor > 1 else f"{start + x:.3f}" for x in t]
    text = table(NAMES, stamps, body(t))
    assert_begin(read(tmp_path, {"s.csv": text}, PLAIN | {"time": {"column": "t", "unit": unit}})[0].data, every(0, 20))


def dated(t, form, zone=0, start=datetime(2024, 2, 28, 23, 59, 50)):
    """Times as text, across midnight before a 29th of February: {ms} and {ns} stand for the fraction."""
    made = []
    for s in t.tolist():
        when = start + timedelta(seconds=s, hours=zone)
        made.append(when.strftime(form).replace("MS", f"{when.microsecond // 1000:03d}"))
    return made


@pytest.mark.parametrize(
    ("unit", "form"),
    [
        ("iso", "%Y-%m-%d %H:%M:%S.MS"),
        ("iso", "%Y-%m-%dT%H:%M:%S.MSZ"),
        ("iso", "%Y-%m-%dT%H:%M:%S.MS000000+00:00"),
        ("iso", "%Y-%m-%dT%H:%M:%S,MS+02:00"),
        ("iso", "%Y-%m-%d %H:%M:%S.MS UTC-0330"),
        ("iso", "%Y-%m-%d %H:%M:%S:MS"),  # AndroSensor
        ("iso", "%Y-%m-%dT%H.%M.%S.MS"),  # MetaBase
        ("iso", "%Y-%m-%dT%H-%M-%S.MS"),
        ("iso", "%Y/%m/%d %H:%M:%S.MS"),  # Shimmer
        ("day-first", "%d.%m.%Y %H:%M:%S.MS"),
        ("day-first", "%d/%m/%Y %H:%M:%S.MS"),
        ("day-first", "%d-%m-%Y %H:%M:%S,MS"),
        ("month-first", "%m/%d/%Y %I:%M:%S.MS %p"),
        ("month-first", "%m/%d/%Y, %H:%M:%S.MS"),
    ],
)
def test_dates(tmp_path, unit, form):
    t = clock(20)
    stamps = [f'"{x}"' for x in dated(t, form)]
    spec = PLAIN | {"time": {"column": "t", "unit": unit}}
    windows, notes = read(tmp_path, {"s.csv": table(NAMES, stamps, body(t))}, spec)
    assert_begin(windows.data, every(0, 20))
    assert not notes


def test_dates_without_fractions_and_times_of_day_alone(tmp_path):
    t = clock(20)
    day = datetime(2024, 1, 1, 10)
    stamps = dated(t, "%H:%M:%S.MS", start=day)
    spec = PLAIN | {"time": {"column": "t", "unit": "iso"}}
    assert_begin(read(tmp_path, {"s.csv": table(NAMES, stamps, body(t))}, spec)[0].data, every(0, 20))
    coarse = dated(t, "%Y-%m-%d %H:%M:%S", start=day)
    refused("different rows share the time", tmp_path, {"s.csv": table(NAMES, coarse, body(t))}, spec)
    spec = PLAIN | {"time": {"column": "t", "unit": "iso", "rate": 50}}
    assert_begin(read(tmp_path, {"s.csv": table(NAMES, coarse, body(t))}, spec)[0].data, every(0, 20))


def test_a_date_read_in_the_wrong_order_is_no_time(tmp_path):
    stamps = dated(clock(20), "%m/%d/%Y %H:%M:%S.MS", start=datetime(2024, 2, 28, 9))
    spec = PLAIN | {"time": {"column": "t", "unit": "day-first"}}
    refused("s.csv, line 2: ", tmp_path, {"s.csv": table(NAMES, stamps, body(clock(20)))}, spec)
    refused("iso", tmp_path, {"s.csv": table(NAMES, stamps, body(clock(20)))})


def test_a_zone_tells_the_time_since_1970(tmp_path):
    from dataset.clocks import Notes
    from dataset.recordings import read as read_whole

    t = clock(20)
    text = table(NAMES, dated(t, "%Y-%m-%dT%H:%M:%S.MS+02:00", zone=2), body(t))
    written(tmp_path, {"my.json": json.dumps(PLAIN | {"time": {"column": "t", "unit": "iso"}}), "raw/s.csv": text})
    ((name, samples, time, since_1970, _),) = read_whole(tmp_path / "raw", tmp_path / "my.json", Notes())
    assert name == "s.csv" and since_1970 and samples.shape == (400, 6)
    begin = datetime(2024, 2, 28, 23, 59, 50, tzinfo=UTC).timestamp()
    assert abs(time[0] - begin) < 0.03 and np.allclose(np.diff(time), 0.05)


def test_a_rate_alone_and_rates_and_begins_from_lines(tmp_path):
    t = clock(20, 32)
    spec = PLAIN | {"time": {"rate": 32}}
    assert_begin(read(tmp_path, {"s.csv": plain(t)}, spec)[0].data, every(0, 20))
    text = "1680686620.5,1680686620.5,1680686620.5\n32.0,32.0,32.0\n" + table(None, acc(t))
    spec = {"header": False, "skip": 2, "time": {"rate": {"line": 2}, "start": {"line": 1}}}
    spec |= {"acc": {"columns": [1, 2, 3], "unit": "m/s2", "gravity": True}}
    windows, _ = read(tmp_path, {"s.csv": text}, spec)
    assert_begin(windows.data, every(0, 20))
    spec["time"]["rate"]["line"] = 3
    refused("s.csv, line 3 tells a rate of 0.* Hz, not of 20 to 1000", tmp_path, {"s.csv": text}, spec)
