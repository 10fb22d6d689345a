"""One's own recordings are never wrong without a word: order and clocks, rates, lost samples, columns, labels."""

import re

import numpy as np
import pytest
from own_recordings import NAMES, PLAIN, assert_begin, body, clock, every, joined, plain, read, refused, rows_of, table
from raw_files import project  # noqa: F401

from bookkeeping.commands import UserError
from dataset import resample

SORT = PLAIN | {"time": {"column": "t", "unit": "s", "sort": True}}
RATE = PLAIN | {"time": {"column": "t", "unit": "s", "rate": 50}}


def in_turn(*parts):
    """Rows of several tables with one header, one of each in turn."""
    heads, rows = zip(*map(rows_of, parts), strict=True)
    assert len(set(heads)) == 1
    return joined(heads[0], [row for group in zip(*rows, strict=True) for row in group])


# ------------------------------------------------------------------------------------------------ order and clocks


@pytest.mark.parametrize("time", [PLAIN["time"], SORT["time"]])
def test_positions_and_users_on_one_clock_are_kept_apart(tmp_path, time):
    t = clock(20)
    people = [("ann", "wrist", 0), ("ann", "ankle", 100), ("bob", "wrist", 200), ("bob", "ankle", 300)]
    text = in_turn(
        *(
            table([*NAMES, "who", "where"], t, body(t + at), [who] * len(t), [f" {where} "] * len(t))
            for who, where, at in people
        )
    )
    spec = PLAIN | {"time": time, "user": {"column": "who"}, "position": {"column": "where"}}
    windows, _ = read(tmp_path, {"s.csv": text}, spec)
    assert_begin(windows.data, *(every(at, at + 20) for *_, at in people))
    (who, users), (where, positions) = windows.columns["user"], windows.columns["position"]
    assert users == ["ann", "bob"] and sorted(positions) == ["ankle", "wrist"]
    for user, position, at in people:
        mine = (who == users.index(user)) & (where == positions.index(position))
        assert_begin(windows.data[mine], every(at, at + 20))
    without = PLAIN | {"time": time}
    refused("s.csv, line 3: different rows share the time 0 s.*name the column", tmp_path, {"s.csv": text}, without)


@pytest.mark.parametrize("spec", [PLAIN, SORT, RATE])
def test_a_clock_set_back_begins_a_recording(tmp_path, spec):
    """Also two sessions that both count from their start."""
    for back in (8, 30.13, 60):
        stamps, at = np.concatenate([clock(60), clock(60, start=60) - back]), clock(120)
        windows, notes = read(tmp_path, {"s.csv": plain(stamps, at)}, spec)
        assert_begin(windows.data, every(0, 120))
        assert any("the clock goes back" in line and "s.csv, line 3002" in line for line in notes), notes
        assert not any("lost" in line or "twice" in line for line in notes)


def test_a_clock_set_back_by_little_is_refused(tmp_path):
    stamps = np.concatenate([clock(30), clock(30, start=30) - 2.013])
    refused(r"s.csv, line 1502: the time goes back by 1.99 s.*sort", tmp_path, {"s.csv": plain(stamps, clock(60))})
    refused("line 1502: sorting would mix", tmp_path, {"s.csv": plain(stamps, clock(60))}, SORT)


@pytest.mark.parametrize("kind", ["two rows", "batches", "one late"])
def test_rows_out_of_order(tmp_path, kind):
    header, rows = rows_of(plain(clock(30)))
    if kind == "two rows":
        rows[700:702] = rows[701:699:-1]
    elif kind == "batches":  # each second's rows in two parts, the later first
        rows = [row for k in range(0, 1500, 50) for row in rows[k + 25 : k + 50] + rows[k : k + 25]]
    else:
        rows.insert(900, rows.pop(850))
    line = {"two rows": 703, "batches": 27, "one late": 902}[kind]
    refused(f"s.csv, line {line}: the time goes back", tmp_path, {"s.csv": joined(header, rows)})
    windows, _ = read(tmp_path, {"s.csv": joined(header, rows)}, SORT)
    assert_begin(windows.data, every(0, 30))


def test_sorting_mixes_no_two_recordings(tmp_path):
    """Two phones' rows in one file, a few hundred rows of each in turn, on clocks that differ by parts of a sample."""
    one, two = (rows_of(plain(clock(60) + off, clock(60, start=at)))[1] for off, at in ((0, 0), (0.007, 100)))
    rows = [row for k in range(0, 3000, 200) for row in one[k : k + 200] + two[k : k + 200]]
    refused("sorting would mix rows of two recordings", tmp_path, {"s.csv": joined(",".join(NAMES), rows)}, SORT)
    refused("the time goes back", tmp_path, {"s.csv": joined(",".join(NAMES), rows)})


def test_rows_that_stand_there_twice_are_taken_once(tmp_path):
    header, rows = rows_of(plain(clock(30)))
    rows = [row for i, row in enumerate(rows) for _ in range(2 if i % 7 == 3 else 1)]
    windows, notes = read(tmp_path, {"s.csv": joined(header, rows)})
    assert_begin(windows.data, every(0, 30))
    assert any("twice" in line and "s.csv, line 6, 214 rows" in line for line in notes), notes


@pytest.mark.parametrize("unit", ["s", "0.2 s", "0.1 s"])
def test_stamps_coarser_than_the_samples_need_a_rate(tmp_path, unit):
    t = clock(60)
    coarse = float(unit.split()[0]) if unit != "s" else 1.0
    text = plain(np.floor(t / coarse + 1e-6) * coarse, t)
    refused(r's.csv, line 3: different rows share the time 0 s; .*"rate"', tmp_path, {"s.csv": text})
    windows, _ = read(tmp_path, {"s.csv": text}, RATE)
    assert_begin(windows.data, every(0, 60))
    wrong = PLAIN | {"time": RATE["time"] | {"rate": 100}}
    refused("the rate is said to be 100 Hz, but the stamps tell of 50", tmp_path, {"s.csv": text}, wrong)


def test_samples_in_bursts(tmp_path):
    """Ten samples arrive together each 0.2 s, stamped when they were handed over."""
    t = clock(60)
    arrival = np.ceil((t + 1e-9) / 0.2) * 0.2 + np.arange(len(t)) % 10 * 1e-4
    refused("bursts.*s.csv, .*rate", tmp_path, {"s.csv": plain(arrival, t)})
    windows, _ = read(tmp_path, {"s.csv": plain(arrival, t)}, RATE)
    assert_begin(windows.data, every(0, 60))


def test_a_gap_in_coarse_stamps_stays_a_gap(tmp_path):
    t = np.concatenate([clock(20), clock(20, start=33)])
    windows, _ = read(tmp_path, {"s.csv": plain(np.floor(t), t)}, RATE)
    assert_begin(windows.data, every(0, 20), every(33, 53))


def test_two_clocks_in_one_file(tmp_path):
    """A row holds a sample of each sensor, which has its own time: the gyroscope's began 0.31 s earlier."""
    a = clock(30)
    w = a - 0.31
    text = table(["ta", *NAMES[1:4], "tg", *NAMES[4:]], a, body(a)[:, :3], w, body(w)[:, 3:])
    spec = {"acc": PLAIN["acc"] | {"time": {"column": "ta", "unit": "s"}}}
    spec |= {"gyro": PLAIN["gyro"] | {"time": {"column": "tg", "unit": "s"}}}
    windows, _ = read(tmp_path, {"s.csv": text}, spec)
    assert_begin(windows.data, every(0, 29.69))
    shifted = table(
        ["ta", *NAMES[1:4], "tg", *NAMES[4:]], a, body(a)[:, :3], np.where(w < 15, w, w - 9), body(w)[:, 3:]
    )
    refused("line 7[67]., .*|line .*the clock goes back, and gyro", tmp_path, {"s.csv": shifted}, spec)


def test_one_sensors_clock_goes_back_in_its_own_file(tmp_path):
    t = clock(30)
    files = {"acc.csv": table(["t", *"xyz"], t, body(t)[:, :3])}
    files["gyro.csv"] = table(["t", *"xyz"], np.where(t < 15, t, t - 15), body(t)[:, 3:])
    spec = PLAIN | {
        sensor: PLAIN[sensor] | {"columns": list("xyz"), "file": f"{sensor}.csv"} for sensor in ("acc", "gyro")
    }
    refused("gyro.csv, line 752: the clock goes back, and gyro can't be joined", tmp_path, files, spec)


def test_a_pause_that_the_clock_does_not_show(tmp_path):
    """phyphox cuts pauses out of its time; meta/time.csv tells them."""
    t = clock(40)
    at = np.where(t < 15.3, t, t + 100)
    files = {
        "rec.csv": plain(t, at),
        "meta/time.csv": '"event","s"\n"START",0\n"PAUSE",15.3\n"START",15.3\n"PAUSE",40\n',
    }
    spec = PLAIN | {"files": "rec.csv", "breaks": {"file": "meta/time.csv", "time": {"column": "s", "unit": "s"}}}
    windows, _ = read(tmp_path, files, spec)
    assert_begin(windows.data, every(0, 15.3), every(115.3, 140))
    with pytest.raises(AssertionError):  # without it a window would span the pause
        assert_begin(read(tmp_path, {"rec.csv": files["rec.csv"]})[0].data, every(0, 15.3), every(115.3, 140))


# ----------------------------------------------------------------------------------------------------------- rates


def rates(*parts):
    """Sample times of (seconds, Hz) one after another."""
    begin, made = 0.0, []
    for seconds, hz in parts:
        made.append(clock(seconds, hz, begin))
        begin += seconds
    return np.concatenate(made)


@pytest.mark.parametrize(
    ("parts", "good", "said"),
    [
        (
            [(30, 100), (20, 10), (30, 100)],
            [(0, 30), (50, 80)],
            r"below 20 Hz, left out: s.csv, 30.0 to 50.0 s at 10 Hz",
        ),
        ([(20, 10), (30, 50)], [(20, 50)], r"below 20 Hz, left out: s.csv, 0.0 to 20.0 s at 10 Hz"),
        ([(30, 50), (20, 12)], [(0, 30)], r"below 20 Hz, left out: s.csv, 30.0 to 49.9 s at 12 Hz"),
        ([(30, 50), (20, 2), (30, 50)], [(0, 30), (50, 80)], None),
        ([(30, 100), (30, 25), (31, 50)], [(0, 90)], None),
        ([(13, 50), (3, 10)] * 3, [(0, 13), (16, 29), (32, 45)], r"below 20 Hz, left out \(3\): s.csv, 13.0 to 16.0"),
    ],
)
def test_a_rate_is_a_stretchs_own(tmp_path, parts, good, said):
    windows, notes = read(tmp_path, {"s.csv": plain(rates(*parts))})
    assert_begin(windows.data, *(every(*part) for part in good), within=0.06)
    assert said is None or any(re.match(said, line) for line in notes), notes


@pytest.mark.parametrize(
    ("stamps", "said"),
    [
        (clock(60, 10), "below 20 Hz.*s.csv, 0.0 to 59.9 s at 10 Hz"),
        (clock(60, 18), "below 20 Hz.*at 18 Hz"),
        (clock(120, 2), "below 20 Hz.*at 2 Hz"),
        (clock(60, 50) / 1000, r"above 1000 Hz.*is the time's unit right"),
        (np.sort(np.concatenate([clock(60, 10), clock(60, 10) + 0.001])), "bursts.*s.csv, 0.0 to"),
        (clock(60, 50) * 1000, "below 20 Hz.*unit right"),
    ],
)
def test_rates_that_give_no_window(tmp_path, stamps, said):
    refused(said, tmp_path, {"s.csv": plain(stamps)})


# ----------------------------------------------------------------------------------------------------- lost samples


def recording_with_losses(seed):
    """(time, samples (n, 2), whether the sample before each (n,) was followed by losses): steps, spikes and noise."""
    rng = np.random.default_rng(seed)
    n, rate = 400, rng.choice([25, 50, 100, 200])
    time = (np.arange(n) + rng.choice([0, 0.005, 0.2]) * rng.uniform(-0.5, 0.5, n)) / rate
    values = np.stack([rng.normal(size=n), np.cumsum(rng.normal(size=n))], 1)
    values[rng.integers(0, n, 20)] *= 20
    kept = np.ones(n, bool)
    for at in rng.integers(2, n - 6, 12):
        kept[at : at + rng.integers(1, 4)] = False
    return time[kept], values[kept]


@pytest.mark.parametrize("seed", range(15))
def test_what_fills_in_lost_samples_stays_between_its_neighbours(seed, monkeypatch):
    """On the grid that is filtered, whichever interpolant made it: the filter's own overshoot comes after."""
    time, values = recording_with_losses(seed)
    grids = []
    monkeypatch.setattr(resample, "low_pass", lambda x, rate, at: grids.append((x, rate)) or np.zeros((len(at), 2)))
    resample.resample(time, values)
    grid, rate = grids[0]
    at = np.arange(len(grid)) / rate
    time = time - time[0]
    usual = np.median(np.diff(time))
    lost = np.flatnonzero(np.diff(time) > 1.6 * usual)
    assert len(lost) > 3
    for k in lost:
        inside = grid[(at > time[k] + 1e-9) & (at < time[k + 1] - 1e-9)]
        low, high = values[k : k + 2].min(0), values[k : k + 2].max(0)
        assert (inside >= low - 1e-9).all() and (inside <= high + 1e-9).all()


@pytest.mark.parametrize("jitter", [0, 2e-4, 2e-3])
def test_a_blow_and_a_turn_beside_lost_samples_give_nothing_that_nobody_did(tmp_path, jitter):
    t = clock(60)
    values, since = 0.01 * body(t) + [0, 0, 9.7, 0, 0, 0], t * 1.9 % 1 / 1.9
    blow, turn = values.copy(), values.copy()
    blow[:, 2] += 40 * np.exp(-since / 0.03)
    turn[:, 2] *= np.where(t // 3 % 2, -1, 1)
    t = t + np.random.default_rng(0).uniform(-jitter, jitter, len(t))
    for full, lost, more in (
        (blow, (since > 0.02) & (since < 0.0799), 1.3),
        (turn, (np.arange(len(t)) % 150 > 0) & (np.arange(len(t)) % 150 < 4), 1.08),
    ):
        whole, _ = read(tmp_path, {"s.csv": table(NAMES, t, full)})
        windows, _ = read(tmp_path, {"s.csv": table(NAMES, t[~lost], full[~lost])})
        assert len(windows.data) >= 8
        assert np.abs(windows.data[..., 2]).max() < more * np.abs(whole.data[..., 2]).max()


def test_lost_samples_below_a_gap_are_bridged_and_longer_ones_are_gaps(tmp_path):
    t = clock(60)
    for lost, expected in ((4, [every(0, 60)]), (6, [every(0, 27.9), every(28.12, 60)])):
        kept = (t < 28 - 1e-6) | (t > 28 + lost / 50 - 1e-6)
        windows, _ = read(tmp_path, {"s.csv": plain(t[kept])})
        assert_begin(windows.data, *expected, near=(1.5, 0.4), within=0.1)
    spec = PLAIN | {"max_gap": 0.5}
    windows, _ = read(tmp_path, {"s.csv": plain(t[(t < 28) | (t > 28.12)])}, spec)
    assert len(windows.data) == 10


# ---------------------------------------------------------------------------------------------------------- columns


def test_a_header_is_read_as_csv(tmp_path):
    t = clock(30)
    names = ['"time, local"', *NAMES, '"a ""b"", c"', "mx"]
    text = table(names, ["x"] * len(t), t, body(t), ["1"] * len(t), t)
    windows, _ = read(tmp_path, {"s.csv": text})
    assert_begin(windows.data, every(0, 30))
    rows = table(names, ['"10:00, Mon"'] * len(t), t, body(t), ["1"] * len(t), t)
    assert_begin(read(tmp_path, {"s.csv": rows})[0].data, every(0, 30))
    windows, _ = read(tmp_path, {"s.csv": text}, PLAIN | {"time": {"rate": 50}})
    assert_begin(windows.data, every(0, 30))


def test_one_column_cannot_serve_two_sensors():
    from dataset.description import Layout

    for change, said in (
        ({"gyro": PLAIN["gyro"] | {"columns": ["gx", "gy", "ax"]}}, "'ax' too: a column cannot serve acc and gyro"),
        ({"gyro": PLAIN["gyro"] | {"columns": ["gx", "gx", "gy"]}}, "names one column twice"),
        ({"acc": PLAIN["acc"] | {"gravity": ["vx", "vy", "ax"]}}, "cannot serve acc and gravity"),
        ({"gyro": PLAIN["gyro"] | {"columns": ["gx", "gy", "ax "]}}, "cannot serve"),
    ):
        with pytest.raises(UserError, match=said):
            Layout(PLAIN | change, "my.json")


def test_a_column_named_and_numbered_serves_one_sensor(tmp_path):
    """The same column by its name and by its number."""
    spec = PLAIN | {"gyro": {"columns": [2, 3, 4], "unit": "rad/s"}}
    refused("cannot serve acc and gyro|both .* and", tmp_path, {"s.csv": plain(clock(30))}, spec)
    spec = PLAIN | {"acc": PLAIN["acc"] | {"columns": ["a*", "ay", "az"]}}
    refused("more than one column 'a\\*'", tmp_path, {"s.csv": plain(clock(30))}, spec)


@pytest.mark.parametrize("units", [["s", *["m/s^2"] * 3, *["rad/s"] * 3], ["(s)", *["m/s²"] * 3, *["rad/s"] * 3]])
def test_a_row_of_units(tmp_path, units):
    t = clock(30)
    text = table([*NAMES], [units[0]], *([unit] for unit in units[1:])) + table(None, t, body(t))
    windows, notes = read(tmp_path, {"s.csv": text})
    assert_begin(windows.data, every(0, 30))
    assert not notes


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        (NAMES, ["s", *["g"] * 3, *["rad/s"] * 3], "column 'ax' is in g there, but described as m/s2"),
        (NAMES, ["s", *["m/s^2"] * 3, *["deg/s"] * 3], "column 'gx' is in deg/s there"),
        (NAMES, ["ms", *["m/s^2"] * 3, *["rad/s"] * 3], "column 't' is in ms there, but described as s"),
        (["t", "ax (g)", *NAMES[2:]], None, r"column 'ax \(g\)' is in g there"),
        ([*NAMES[:4], "gx [°/s]", *NAMES[5:]], None, "is in °/s there"),
    ],
)
def test_units_that_contradict_the_description(tmp_path, header, row, said):
    t = clock(30)
    text = table(header, *([x] for x in row)) + table(None, t, body(t)) if row else table(header, t, body(t))
    spec = PLAIN | {"acc": PLAIN["acc"] | {"columns": header[1:4]}, "gyro": PLAIN["gyro"] | {"columns": header[4:]}}
    refused(said, tmp_path, {"s.csv": text}, spec)


def test_more_cells_than_names(tmp_path):
    """A column without a name shifts nothing: empty ones at a line's end are none, others are refused."""
    t = clock(30)
    ended = plain(t, end=",\n")
    assert_begin(read(tmp_path, {"s.csv": ended})[0].data, every(0, 30))
    index = table(",".join(NAMES) + "\n", np.arange(len(t)), t, body(t), form="{:.6f}")  # R writes rows' names so
    refused("s.csv has 7 names, but 8 cells in a row: which column is which", tmp_path, {"s.csv": index})
    header, rows = rows_of(plain(t))
    rows[700] += ",5,6"
    windows, notes = read(tmp_path, {"s.csv": joined(header, rows)})
    assert_begin(windows.data, every(0, 30), near=(0.5, 0.2))
    assert any("can't be read" in line and "1 rows" in line for line in notes), notes


# ----------------------------------------------------------------------------------------------------------- labels


def test_labels_are_compared_after_trimming_everywhere(tmp_path):
    t = clock(60)
    what = [" walk" if s % 10 < 4 else "walk " if s % 10 < 7 else "walk" for s in t]
    who = ["ann " if s % 8 < 4 else "ann" for s in t]
    where = ["\twrist" if s % 9 < 4 else "wrist" for s in t]
    text = table([*NAMES, "what", "who ", " where"], t, body(t), what, who, where)
    spec = PLAIN | {"label": {"column": " what"}, "user": {"column": "who"}, "position": {"column": "where "}}
    spec |= {"activities": {"walk ": "walking", " sit": "sitting&standing"}}
    windows, _ = read(tmp_path, {"s.csv": text}, spec)
    assert_begin(windows.data, every(0, 60))
    assert windows.activity.tolist() == ["walking"] * 10
    assert windows.columns["user"][1] == ["ann"] and windows.columns["position"][1] == ["wrist"]


def test_labels_in_paths_values_and_annotations_are_trimmed(tmp_path):
    text = plain(clock(30))
    spec = PLAIN | {"path": r"(?P<what>[^/]*)\.csv$", "label": {"path": "what"}, "activities": {"walk": "walking"}}
    for name in ("walk .csv", " walk.csv"):
        assert read(tmp_path, {name: text}, spec)[0].activity.tolist() == ["walking"] * 5
    spec = PLAIN | {"label": {"value": "walk "}, "activities": {" walk": "walking"}}
    assert read(tmp_path, {"s.csv": text}, spec)[0].activity.tolist() == ["walking"] * 5
    marks = "time,text\n0,walk \n13, walk\n"
    spec = PLAIN | {"files": "s.csv", "activities": {"walk": "walking"}}
    spec |= {"label": {"file": "marks.csv", "column": "text", "time": {"column": "time", "unit": "s"}}}
    windows, _ = read(tmp_path, {"s.csv": text, "marks.csv": marks}, spec)
    assert_begin(windows.data, every(0, 30))
    assert windows.activity.tolist() == ["walking"] * 5
