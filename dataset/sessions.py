"""The files of a recording to sessions: rows of one user, position and clock, each sensor with its stretches.

A recording is a file, or a folder with a file a sensor. It falls into sessions where a column says so, or where its
clock began anew. What is left out is counted in Notes.

Axes: n rows of a file.
"""

import posixpath
import re
from typing import Any, NamedTuple

import numpy as np

from bookkeeping.commands import UserError
from dataset import clocks, formats
from dataset.description import SECONDS, Line, below, fits
from dataset.resample import HIGHEST, LOWEST
from dataset.windows import runs

LOST = 0.1  # share of a file's rows that may be unreadable


class Stream(NamedTuple):
    """Rows of one or more sensors that share a clock."""

    sensors: tuple  # their Sensors
    time: np.ndarray  # (n,) s, strictly increasing
    values: np.ndarray  # (n, 3 * sensors) as in the file
    parts: list  # (first, last + 1) of its stretches


class Session(NamedTuple):
    """One recording of one user, position and clock."""

    name: str
    keys: dict  # user, position: text
    streams: list
    marks: list  # (begin s, label) from when on each label holds; "" for none
    breaks: np.ndarray  # s: moments that no window may span
    layout: Any


def sessions(layout, source, names, notes, used):
    """Yield the Sessions of the files `names` that the description reads; they are added to the set `used`.

    Raises UserError that names file and line.
    """
    own, others = layout.patterns()
    mine = [name for name in names if (fits(own, name) if own else formats.ending(name) in (".csv", ".csv.gz"))]
    mine = mine if own else [name for name in mine if not any(fits(other, name) for other in others)]
    mine = mine or [name for name in names if not own and len(names) == 1]
    for name in sorted(mine, key=_file_order):
        match = layout.path.search(name)
        if not match:
            raise UserError(f"{layout.where}: 'path' does not match {name}; mend it, or narrow 'files'")
        beside = {pattern: _beside(layout, names, name, match, pattern, source) for pattern in others}
        used.update({name, *filter(None, beside.values())})
        tables = _tables(layout, source, {None: name, layout.acc.file: name} | beside)
        yield from _sessions_of(layout, tables, name, match, notes)
        for table in {id(table): table for table in tables.values() if table and table.lost > 0}.values():
            notes.add("rows that can't be read, left out", f"{table.where}, {table.lost} rows")


def _file_order(name):
    """Folders by name, files within one by name with numbers in numerical order: sub_3.csv before sub_24.csv."""
    folder, _, file = name.rpartition("/")
    return folder, [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", file)]


def _beside(layout, names, name, match, pattern, source):
    """The file of another sensor of the recording `name`: in its folder, or with the same text of 'recording'."""
    kind, group = layout.recording or (None, None)
    if kind == "path":
        near = [other for other in names if (m := layout.path.search(other)) and m[group] == match[group]]
    else:
        near = below(posixpath.dirname(name), names)
    found = [other for other in near if fits(pattern, other)]
    if kind != "path" and found:  # the folder's own before those further down
        least = min(other.count("/") for other in found)
        found = [other for other in found if other.count("/") == least]
    optional = [part[0] for part in (layout.label_file, layout.breaks) if part]
    if len(found) == 1 or (not found and pattern in optional):
        return found[0] if found else None
    what = f"no file {pattern!r}" if not found else f"more than one file {pattern!r} ({', '.join(found[:3])})"
    todo = f'mend \'file\' in {layout.where}, or say which files belong together: "recording": {{"path": GROUP}}'
    raise UserError(f"{source.label}: {name} has {what} beside it; {todo}")


def _tables(layout, source, files):
    """The tables of a recording's files by their patterns, each with every column that the description reads of it.

    "label" and "breaks" are those of files of marks; None where there is none, or it holds no mark.
    """
    wanted = {}
    for sensor in layout.sensors:
        wanted.setdefault(files[sensor.file], []).append(sensor)
    tables = {}
    for file, mine in wanted.items():
        texts = [column for sensor in mine for column, _ in sensor.where]
        if file == files[None]:
            origins = (layout.label, layout.recording, *layout.columns.values())
            texts += [value for kind, value in filter(None, origins) if kind == "column"]
        units = {column: sensor.unit for sensor in mine for column in sensor.columns}
        table = _read(source, file, layout, [sensor.clock for sensor in mine], list(units), texts, units)
        tables |= {sensor.file: table for sensor in mine}
        taken = {}
        for sensor in mine:  # of a name and a number too
            for column in sensor.columns:
                key = table.find(column), sensor.where
                if taken.setdefault(key, sensor.name) != sensor.name:
                    raise UserError(f"{table.where}: column {column!r} cannot serve {taken[key]} and {sensor.name}")
    for key, origin in (("label", layout.label_file), ("breaks", layout.breaks)):
        if origin and files.get(origin[0]) and formats.has_rows(source, files[origin[0]]):
            texts = [] if origin[1] is None else [origin[1]]
            tables[key] = _read(source, files[origin[0]], layout, [origin[2]], [], texts, {})
    return tables


def _read(source, file, layout, kinds, numbers, texts, units):
    """The Table of a file with these columns and those of its clocks `kinds`."""
    for clock in kinds:
        if clock.column is not None:
            (numbers if clock.unit in SECONDS else texts).append(clock.column)
            if clock.unit in SECONDS:
                units[clock.column] = clock.unit
    return formats.read(source, file, layout.form, numbers, texts, units)


class Raw(NamedTuple):
    """Rows of sensors that share a file and a clock, as they stand there, without those that can't be read."""

    sensors: list
    table: Any
    rows: np.ndarray  # (n,) their numbers in the file
    time: np.ndarray  # (n,) s
    values: np.ndarray  # (n, 3 * sensors)


def _sessions_of(layout, tables, name, match, notes):
    """Yield the Sessions of the recording in `name`; `tables` are those of its files by their pattern (None: its)."""
    main = tables[layout.acc.file]
    groups = {}
    for sensor in layout.sensors:
        alone = sensor.name if layout.rows != "samples" else None
        groups.setdefault((id(tables[sensor.file]), sensor.where, sensor.clock, alone), []).append(sensor)
    raws = [_raw(layout, sensors, tables[sensors[0].file]) for sensors in groups.values()]
    place, combos, texts = _keys(layout, main, match)
    label = main.texts(layout.label[1]) if layout.label and layout.label[0] == "column" else None
    marks = _marks(layout.label_file, tables.get("label"))
    breaks = np.array([time for time, _ in _marks(layout.breaks, tables.get("breaks"))])
    held = range(1) if place is None else np.unique(place[raws[0].rows]).tolist()  # not that of blank lines
    if len(held) > 1 and any(raw.table is not main for raw in raws):
        what = "holds several recordings, users or positions, and sensors in other files"
        raise UserError(f"{main.where} {what}: they can't be told apart there; mend {layout.where}")
    for number, combo in ((i, combos[i]) for i in held):
        keys = {key: found[combo[i]] for i, (key, found) in enumerate(texts.items())}
        called = "/".join(filter(None, (keys.pop("recording"), *(keys.values() if len(held) > 1 else ()))))
        mine = [raw if place is None else _only(raw, place == number) for raw in raws]
        called = f"{name} {called}" if len(held) > 1 else name
        clocked = _clocked(layout, mine, notes)
        for again, streams in enumerate(clocked, 1):
            title = f"{called}, part {again}" if len(clocked) > 1 else called
            found = marks
            if label is not None:
                found = _runs(label, *next(pair for pair in streams if layout.acc in pair[0].sensors))
            elif layout.label:
                found = [(-np.inf, text_of(layout.label, match))]
            parts = [_stretched(layout, stream, title, notes) for stream, _ in streams]
            yield Session(title, keys, parts, found or [(-np.inf, "")], breaks, layout)


def _raw(layout, sensors, table):
    """The Raw of sensors that share a clock. Raises UserError if more than a tenth of the rows can't be read."""
    values = np.stack([table.numbers(column) for sensor in sensors for column in sensor.columns], axis=1)
    clock = sensors[0].clock
    time = _times(table, clock, len(values), np.isnan(values).all(1))
    if len(time) != len(values):
        raise UserError(f"{table.where}: {len(time)} times for {len(values)} samples of {sensors[0].name}")
    there = np.ones(len(values), bool)
    for column, text in sensors[0].where:
        texts, at = table.texts(column)
        there &= at == (texts.index(text) if text in texts else -1)
    if not there.any():
        raise UserError(f"{table.where} has no row of {sensors[0].name} ({dict(sensors[0].where)})")
    good = there & np.isfinite(values).all(1) & np.isfinite(time)
    if layout.rows == "samples":
        lost = max(0, int((there & ~good).sum()) - table.blank)
        table.lost = max(table.lost, lost)
        if lost > LOST * there.sum():
            first = int(np.flatnonzero(there & ~good)[0])
            kinds = [clock.column] if clock.column is not None and clock.unit in SECONDS else []
            what = table.shown(first, [*kinds, *(column for sensor in sensors for column in sensor.columns)])
            what += f", no number, as in {lost} of {there.sum()} rows"
            hint = (
                "times that are dates have the unit iso" if kinds and what.startswith(str(kinds[0])) else "see --look"
            )
            raise UserError(f"{table.place(first)}: {what}: are columns, separator, decimal sign right? {hint}")
    else:
        good = _new(good, time, values, clock is not layout.clock)
    if not good.any():
        raise UserError(f"{table.where} has no sample of {sensors[0].name}")
    rows = np.flatnonzero(good)
    return Raw(sensors, table, rows, time[rows], values[rows])


def _times(table, clock, n, empty):
    """The rows' times (n,) in s; where a rate alone tells them, blank lines (of the rows `empty`) take no time."""
    if clock.column is not None:
        return table.seconds(clock)
    start = table.cell(clock.start) if clock.start else 0.0
    place = np.arange(n) - (np.cumsum(empty) if table.blank else 0)
    return start + place / _rate(table, clock)


def _rate(table, clock):
    """The rate that a clock tells, in Hz, or None. Raises UserError for one that a line of the file tells wrongly."""
    if not isinstance(clock.rate, Line):
        return clock.rate
    rate = table.cell(clock.rate)
    if not LOWEST <= rate <= HIGHEST:
        what = f"a rate of {rate:g} Hz, not of {LOWEST} to {HIGHEST}"
        raise UserError(f"{table.where}, line {clock.rate.number} tells {what}; is it this file, or another app's?")
    return rate


def _new(good, time, values, own_clock):
    """Which rows (n,) hold a new sample, where each row carries every sensor's newest: neither zeros before the sensor
    first reports nor repeats. Where values stay the same for longer than a gap, the sensor reported them again."""
    rows = np.flatnonzero(good)
    first = np.flatnonzero((values[rows] != 0).any(1))
    rows = rows[first[0] :] if len(first) else rows[:0]
    if not len(rows):
        return np.zeros(len(good), bool)
    same = (np.diff(values[rows], axis=0) == 0).all(1)
    if own_clock:
        same &= np.diff(time[rows]) == 0
    kept = np.concatenate([[True], ~same])
    if not own_clock:
        starts = np.flatnonzero(kept)
        hole = np.append(np.diff(time[rows[starts]]), time[rows[-1]] - time[rows[starts[-1]]]) > clocks.GAP
        kept |= np.repeat(hole, np.diff(np.append(starts, len(rows))))
    result = np.zeros(len(good), bool)
    result[rows[kept]] = True
    return result


def _keys(layout, table, match):
    """(the recording that each row of the main file belongs to (n,), [the texts' places of each], {key: its texts})."""
    texts, places = {}, []
    for key, origin in ({"recording": layout.recording} | layout.columns).items():
        if origin and origin[0] == "column":
            texts[key], at = table.texts(origin[1])
            places.append(at)
        else:
            texts[key] = ["" if key == "recording" else text_of(origin, match)]
            places.append(None)
    if all(at is None for at in places):
        return None, [[0] * len(places)], texts
    n = next(len(at) for at in places if at is not None)
    table_of = np.stack([np.zeros(n, np.int64) if at is None else at for at in places], axis=1)
    combos, place = np.unique(table_of, axis=0, return_inverse=True)
    return place.ravel(), combos.tolist(), texts


def text_of(origin, match):
    """The text that the file's path, or the description itself, tells."""
    kind, value = origin
    return ((match[value] or "") if kind == "path" else value).strip()


def _only(raw, mine):
    """The rows of a Raw that a mask over the file's rows has."""
    keep = mine[raw.rows]
    return raw._replace(rows=raw.rows[keep], time=raw.time[keep], values=raw.values[keep])


def _clocked(layout, raws, notes):
    """The sessions of sensors by their clocks: lists of (Stream, its rows in the file). Raises UserError."""
    raws = [raw for raw in raws if len(raw.time)]
    tables = {id(raw.table) for raw in raws}
    shared = len(tables) == 1 and len({(raw.sensors[0].where, raw.sensors[0].clock) for raw in raws}) == 1
    if shared:  # one clock: its order decides for all
        rows, first = np.unique(np.concatenate([raw.rows for raw in raws]), return_index=True)
        time = np.concatenate([raw.time for raw in raws])[first]
        table, clock = raws[0].table, raws[0].sensors[0].clock
        orders = [rows[order] for order in clocks.in_order(time, rows, table.place, clock, notes)]
        at = [np.full(rows[-1] + 1, -1) for _ in raws]
        for places, raw in zip(at, raws, strict=True):
            places[raw.rows] = np.arange(len(raw.rows))
        chosen = [
            [(raw, places[order][places[order] >= 0]) for raw, places in zip(raws, at, strict=True)] for order in orders
        ]
    else:
        each = [clocks.in_order(raw.time, raw.rows, raw.table.place, raw.sensors[0].clock, notes) for raw in raws]
        for raw, orders in zip(raws, each, strict=True):
            if len(orders) > 1:
                at, sensor = raw.table.place(raw.rows[orders[1][0]]), raw.sensors[0].name
                what = f"{sensor} can't be joined with the other sensors' clocks then"
                raise UserError(f"{at}: the clock goes back, and {what}; split the recording there")
        chosen = [[(raw, orders[0]) for raw, orders in zip(raws, each, strict=True)]]
    return [[_spread(raw, order, notes) for raw, order in parts if len(order)] for parts in chosen]


def _spread(raw, order, notes):
    """(the Stream of a Raw's rows in order, without its stretches; the rows' numbers in the file)."""
    clock, rows = raw.sensors[0].clock, raw.rows[order]
    rate = _rate(raw.table, clock) if clock.column is not None else None
    time, keep = clocks.spread(raw.time[order], raw.values[order], rows, raw.table.place, clock, rate, notes)
    return Stream(tuple(raw.sensors), time, raw.values[order][keep], []), rows[keep]


def _stretched(layout, stream, name, notes):
    where = name if len(stream.sensors) == len(layout.sensors) else f"{name} ({stream.sensors[0].name})"
    return stream._replace(parts=clocks.stretches(stream.time, layout.max_gap, where, notes))


def _runs(label, acc, rows):
    """The marks of a label column: where the text changes from row to row of the acceleration's Stream."""
    texts, at = label
    first, _ = runs(at[rows])
    return [(acc.time[i] if i else -np.inf, texts[at[rows[i]]]) for i in first.tolist()]


def _marks(origin, table):
    """[(s, text), ...] of a file of marks, in order; none where the file is missing or has no rows."""
    if not origin or table is None:
        return []
    _, column, clock = origin
    time = table.seconds(clock)
    texts, at = table.texts(column) if column is not None else ([""], np.zeros(len(time), np.int64))
    order = [i for i in np.argsort(time, kind="stable").tolist() if np.isfinite(time[i])]
    return [(float(time[i]), texts[at[i]]) for i in order]
