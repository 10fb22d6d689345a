"""What a recording holds, before anything is made of it: files, columns, clocks, units at rest, and a description."""

import functools
import glob
import json
import posixpath
import re

import numpy as np

from bookkeeping.commands import UserError
from dataset import apps, formats
from dataset.archives import open_source
from dataset.check import GYRO_HIGH, STILL, TOLERANCE
from dataset.clocks import Notes, between
from dataset.description import ACC, GYRO, SECONDS, Layout
from dataset.recordings import LIMIT
from dataset.sessions import sessions
from dataset.windows import GRAVITY

AXES = re.compile(r"(?i)^(.*?)(?:(?<=\.)([123])|([xyz]))(\W.*|_CAL|)$")
KINDS = (  # of three columns, by their name or else their file's: the first that fits
    ("other", r"(?i)mag|uncal|quat|orient|lin(ear)?[ _]?acc|user|attitude|temp"),
    ("gravity", r"(?i)grav"),
    ("gyro", r"(?i)gyr|rot|angular|omega|^w$|^g[ _.]?$"),
    ("acc", r"(?i)acc|^a[ _.]?$|^gF$"),
)
TIME = re.compile(
    r"(?i)^(time|t|timestamp|stamp|date|datetime|seconds.*|epoch|ms|.*[ _]time|time[ _(].*|.*timestamp.*|.*_t)$"
)
SENSOR, ANDROID = re.compile(r"(?i)sensor|type"), {"1": "acc", "4": "gyro", "9": "gravity", "10": "other"}
LABEL = re.compile(r"(?i)^(label|activity|class|what|gt|behaviou?r|activities)$")


def look(raw, figure=None):
    """Yield lines on the recordings at `raw` (a file, folder or zip); `figure` is a PNG file to draw the first into.

    Raises UserError for what can't be opened. Nothing but the figure is written.
    """
    if figure is not None and figure.suffix.lower() != ".png":
        raise UserError(f"--figure {figure}: give a file name that ends with .png")
    with open_source(raw, LIMIT, formats.TABLES) as source:
        names = [name for name in sorted(source.sizes) if formats.ending(name)]
        for name in sorted(source.sizes)[:40]:
            yield f"{name}: {source.sizes[name]:,} bytes{'' if name in names else ', of a kind that is not read'}"
        if len(source.sizes) > 40:
            yield f"... and {len(source.sizes) - 40} more files"
        for name, why in source.skipped.items():
            yield f"{name}: not read, {why}"
        heads = {name: columns_of(source, name) for name in names[:40]}
        for name, (columns, rows) in heads.items():
            first = f"; first row {', '.join(rows[0])[:200]}" if rows else ""
            yield f"{name}: columns {', '.join(columns)[:300]}{first}"
        notes = Notes()
        try:
            chosen = apps.choose(source, names, notes)
            yield from notes.lines()
        except UserError as error:
            yield "no known app's files" if error.args[0].startswith("--recordings auto") else str(error)
            chosen = [(Layout(guess(heads), "the description below"), names)]
        shown = None
        for layout, mine in chosen:
            if layout.spec != shown:
                yield "description, to save as JSON and correct (docs/recordings.md):"
                yield _to_save(layout, source, mine, names)
                shown = layout.spec
            yield from measured(source, mine, layout, figure if layout is chosen[0][0] else None)


def _to_save(layout, source, mine, names):
    """The description as JSON, one key a line, without `when`, that is, for these files alone.

    It names its table where others lie beside.
    """
    spec, lines = layout.spec, functools.partial(formats.first_lines, source)
    own = {glob.escape(posixpath.basename(name)) for name in mine if apps.is_own(lines, name, layout)}
    if len(own) == 1 < len(names) and not layout.patterns()[0]:
        spec = {"files": own.pop()} | spec
    kept = [f"  {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in spec.items() if k != "when"]
    return "{\n" + ",\n".join(kept) + "\n}"


def columns_of(source, name):
    """(column names, numbers from 1 where there are none; the first rows as text) of a table file."""
    if formats.ending(name) in (".parquet", ".npy", ".npz", ".mat"):
        table = formats.read(source, name, {}, [], [])
        series = [table.series[i] for i in range(len(table.names))]
        return table.names, [[str(s[i]) if i < len(s) else "" for s in series] for i in range(50)]
    lines = formats.first_lines(source, name)
    full = [line for line in lines if line.strip() and not line.strip('"').startswith("sep=")][:50]
    if not full:
        return [], []
    ended = all(line.endswith(";") for line in full[1:]) and full[0].count(";") <= 2  # a row's end, not a separator
    fields = [len(formats.cells(full[-1], separator)) for separator in (";", "\t")]
    separator = "," if ended or max(fields) < 3 else ";\t"[int(np.argmax(fields))]
    rows = [formats.cells(line, separator) for line in full]
    if sum(formats.is_number(cell.rstrip(";"), ",") for cell in rows[0]) > len(rows[0]) / 2:
        return [str(i) for i in range(1, len(rows[0]) + 1)], rows
    return rows[0], rows[1:]


def guess(heads):
    """A description of files that no known app wrote, from the names of columns and files; values decide on units.

    Raises UserError where no three columns look like an acceleration.
    """
    found, label = {}, None
    for name, (columns, rows) in heads.items():
        for kind, (triple, where) in triples(columns, rows, posixpath.basename(name)).items():
            clock = time_of(columns, rows, triple)
            sensor = {"columns": triple, "unit": unit_of(kind, triple, heads[name])}
            sensor |= {"where": where} if where else {}
            found.setdefault(kind, (name, sensor, clock))
        label = label or next((_reference(column) for column in columns if LABEL.match(column)), None)
    if "acc" not in found:
        what = f"no three columns look like an acceleration's x, y and z in {', '.join(heads) or 'no table'}"
        raise UserError(f"{what}; describe them by hand: docs/recordings.md")
    main, acc, clock = found["acc"]
    spec = {"header": False} if isinstance(acc["columns"][0], int) else {}
    last = [row[-1] for row in heads[main][1] if row]
    if last and all(cell.endswith(";") for cell in last):
        spec["row_end"] = ";"
    spec |= {"time": clock, "acc": acc}
    if "gyro" in found:
        other, spec["gyro"], own = found["gyro"]
        if other != main:
            acc["file"], spec["gyro"]["file"] = (glob.escape(posixpath.basename(name)) for name in (main, other))
        if own != clock:
            spec["gyro"]["time"] = own
    acc["gravity"] = True
    return spec | ({"label": {"column": label}} if label else {})


def _reference(column):
    return int(column) if column.isdecimal() else column


def triples(columns, rows, file):
    """{kind: (three columns, {column: text} of the rows that are this sensor's)}.

    Names that differ in x, y and z alone; of columns without names, the numbers after the time.
    """
    if columns and columns[0] == "1":
        clock = time_of(columns, rows, []).get("column", 0)
        numeric = [
            i
            for i in range(clock + 1, len(columns) + 1)
            if all(len(r) < i or formats.is_number(r[i - 1].rstrip(";")) for r in rows)
        ]
        return {kind: (numeric[i : i + 3], {}) for kind, i in (("acc", 0), ("gyro", 3)) if len(numeric) >= i + 3}
    groups, result = {}, {}
    for column in columns:
        if match := AXES.match(column):
            axis = (match[2] or match[3]).lower().translate(str.maketrans("123", "xyz"))
            groups.setdefault((match[1], match[4]), {})[axis] = column
    for (before, _), axes in groups.items():
        three = [axes[axis] for axis in "xyz"] if len(axes) == 3 else []
        alone = not before.strip(" _.-")
        for at, column in enumerate(columns) if alone and three else ():  # a row a sensor event
            for text in sorted({row[at] for row in rows if at < len(row)} - {""}):
                kind = ANDROID.get(text) if SENSOR.match(column) else None
                kind = kind or (None if formats.is_number(text) else kind_of(text))
                if kind:
                    result.setdefault(kind, (three, {column: text}))
        kind = kind_of(file if alone else before.strip(" _.-"))
        if three and kind and not (alone and result):
            result.setdefault(kind, (three, {}))
    return {kind: found for kind, found in result.items() if kind != "other"}


def kind_of(text):
    return next((kind for kind, pattern in KINDS if re.search(pattern, text)), None)


def time_of(columns, rows, triple):
    """The clock that a table seems to have: its time column and unit, or a rate to be told.

    Where several are named like times, that which begins like the columns `triple`.
    """
    cells = {c: [r[i].replace(",", ".") for r in rows if i < len(r) and r[i].strip()] for i, c in enumerate(columns)}
    named = [column for column in columns if TIME.match(column) and cells[column]]
    named.sort(key=lambda column: not (triple and column[:3] == str(triple[0])[:3]))
    if columns and columns[0] == "1":
        numbers = {c: [float(x) for x in found if formats.is_number(x)] for c, found in cells.items()}
        named = [
            c
            for c, x in numbers.items()
            if len(x) > 2 and len(x) == len(rows) and min(np.diff(x)) >= 0 and x[-1] > x[0]
        ]
    for column in named[:1]:
        numbers = [float(cell) for cell in cells[column] if formats.is_number(cell)]
        if len(numbers) < len(cells[column]) / 2:
            year_first = re.match(r"\s*(\d{4}|\d\d?:)", cells[column][-1])
            return {"column": _reference(column), "unit": "iso" if year_first else "day-first"}
        steps = np.diff(numbers)
        middle = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.02
        fitting = min(SECONDS, key=lambda unit: abs(np.log(max(middle, 1e-12) * SECONDS[unit] * 50)))
        return {"column": _reference(column), "unit": fitting}
    return {"rate": 50}


def unit_of(kind, triple, head):
    """The unit that a column's name or else its first values tell."""
    columns, rows = head
    places = [column - 1 if isinstance(column, int) else columns.index(column) for column in triple]
    known = formats.known_unit(formats.named_unit(columns[places[0]]))
    if known in (ACC if kind == "acc" else GYRO):
        return known
    cells = [[row[i].replace(",", ".") for i in places] for row in rows if len(row) > max(places)]
    values = [[float(x) for x in row] for row in cells if all(formats.is_number(x) for x in row)]
    if kind == "gyro" or not values:
        return "rad/s" if kind == "gyro" else "m/s2"
    return acc_unit(float(np.median(np.linalg.norm(values, axis=1))))


def acc_unit(length):
    """The unit in which a length is nearest to gravity's."""
    return min(ACC, key=lambda unit: abs(np.log(max(length, 1e-9) * ACC[unit] / GRAVITY)))


# ------------------------------------------------------------------------------------------------ what values say


def measured(source, names, layout, figure):
    """Yield lines on the sessions that a description reads: rates, gaps, and the sensors at rest."""
    notes, drawn = Notes(), None
    try:
        for session in sessions(layout, source, names, notes, set()):
            for stream in session.streams:
                called = ", ".join(sensor.name for sensor in stream.sensors)
                steps = np.diff(stream.time)
                if not len(steps):
                    continue
                low, middle, high = np.quantile(steps, [0.05, 0.5, 0.95])
                spread = f"{1000 * low:.3g} to {1000 * high:.3g} ms"
                gaps = sum(b < len(stream.time) for _, b in stream.parts)
                extent = between(stream.time[0], stream.time[-1])
                rate = f"{1 / middle:.4g} Hz (intervals {spread}), {gaps} gaps"
                yield f"{session.name}: {called}: {len(stream.time)} samples, {extent}, {rate}"
                for i, sensor in enumerate(stream.sensors):
                    found = at_rest(sensor, stream.values[:, 3 * i : 3 * i + 3], 1 / middle, not layout.gravity)
                    yield f"  {found}"
            labels = sorted({text for _, text in session.marks if text})
            if labels:
                yield f"  labels: {', '.join(labels)[:200]}"
            drawn = drawn or session
    except UserError as error:
        yield f"problem: {error}"
    yield from notes.lines()
    if drawn and figure:
        draw(drawn, figure)
        yield f"drawn: {figure}"


def at_rest(sensor, values, rate, with_gravity):
    """What a sensor's values (n, 3) say of its unit, in seconds in which it rests."""
    many = max(2, round(rate))
    length = np.linalg.norm(values[: len(values) // many * many], axis=1).reshape(-1, many)
    if not len(length):
        return f"{sensor.name}: too short to tell its unit"
    if sensor.name == "gyro":
        top, calm, doubt = np.quantile(length, 0.99), length.mean(1).min(), ""
        if top * sensor.scale > GYRO_HIGH:
            doubt = f"; more than a body turns: is it not in {sensor.unit}?"
        elif calm * sensor.scale > 1:
            doubt = "; it does not rest near 0: is it a rotation rate?"
        return f"gyro: |rate| {calm:.3g} in the calmest second, 99 % below {top:.3g}, as {sensor.unit}{doubt}"
    still = length.std(1) < STILL * length.mean(1)
    middle = float(np.median(length[still] if still.any() else length))
    said = f"{sensor.name}: size {middle:.3g} "
    said += f"in {still.mean():.0%} of seconds, at rest" if still.any() else "in the median"
    if sensor.name != "acc" or not with_gravity:
        return said
    fitting = acc_unit(middle)
    if abs(middle * ACC[fitting] / GRAVITY - 1) > TOLERANCE:
        return f"{said}; no unit makes that 9.8 m/s²: is it without gravity?"
    return f"{said}: in {fitting}, with gravity" + ("" if ACC[fitting] == sensor.scale else f", not {sensor.unit}")


def draw(session, path):
    """Draw a session's sensors over time into a PNG file."""
    from bookkeeping import plots

    shown = [(stream, i, sensor) for stream in session.streams for i, sensor in enumerate(stream.sensors)]
    with plots.plt.rc_context(plots.STYLE):
        figure, axes = plots.plt.subplots(len(shown), 1, figsize=(11, 2.4 * len(shown)), sharex=True, squeeze=False)
        for ax, (stream, i, sensor) in zip(axes[:, 0], shown, strict=True):
            every = max(1, len(stream.time) // 20000)
            for k, axis in enumerate("xyz"):
                ax.plot(stream.time[::every], stream.values[::every, 3 * i + k], linewidth=0.6, label=axis)
            ax.set(ylabel=f"{sensor.name}, {sensor.unit}")
        axes[0, 0].set(title=session.name)
        axes[0, 0].legend(ncols=3, loc="upper right")
        axes[-1, 0].set_xlabel("time, s")
        plots.save(figure, path)
