"""One file of a recording as columns: text tables of any separator, Parquet, NumPy's and MATLAB's arrays.

Nothing is guessed that changes a number in silence: what the description leaves open (separator, decimal sign, the line
of the names, a row of units) is seen from the file, and a unit that the file names is held against the described one.
A cell that is no number is NaN here; the caller counts those rows.
"""

import csv
import fnmatch
import gzip
import io
import re
from typing import NamedTuple

import numpy as np

from bookkeeping.commands import UserError
from dataset.description import DATES, SECONDS

LARGEST = 4 << 30  # bytes of one file, unpacked: it is read whole
HEAD = 1 << 17  # bytes that the names, the separator and the decimal sign are seen from
SEPARATORS = (",", ";", "\t")
ENDINGS = (".csv", ".tsv", ".txt", ".csv.gz", ".tsv.gz", ".txt.gz", ".parquet", ".npy", ".npz", ".mat")
SPELLINGS = {  # of units in files, by the unit as descriptions spell it
    "m/s2": ("m/s^2", "m/s2", "m/s²", "m/(s^2)", "m/s/s", "m s-2"),
    "g": ("g",),
    "rad/s": ("rad/s",),
    "deg/s": ("deg/s", "d/s", "°/s", "dps"),
    **{unit: (unit,) for unit in SECONDS},
}
TABLES = f"(?i).*({'|'.join(map(re.escape, ENDINGS))})"
UNITS = {spelling: unit.replace("µ", "u") for unit, spellings in SPELLINGS.items() for spelling in spellings}
DATE = r"(?:(\d{1,4})[-/.](\d{1,2})[-/.](\d{1,4})[T ,]+)?(\d{1,2})[:.-](\d{1,2})[:.-](\d{1,2})(?:[.,:](\d{1,9}))?"
DATE = rf"^\s*{DATE}\s*([AaPp][Mm])?\s*(?:UTC)?\s*(Z|[+-]\d{{2}}:?\d{{2}})?\s*$"


class Head(NamedTuple):
    """How a text table is written."""

    names: list  # of the columns; none where they are numbers
    first: int  # line of the first row, from 1
    separator: str
    decimal: str
    width: int  # cells in a row


class Table:
    """Columns of one file. `where` names it in messages; `lost` rows could not be read, `blank` lines are none."""

    def __init__(self, where, names, first=None):
        self.where, self.names, self.first, self.series, self.lost, self.blank = where, names, first, {}, 0, 0
        self.lines = []  # the file's first ones

    def place(self, row):
        """The row as the user finds it."""
        return f"{self.where}, line {self.first + row}" if self.first else f"{self.where}, row {row + 1}"

    def find(self, reference):
        """The number (from 0) of the column that a name, a name with *, or a number from 1 means. Raises UserError."""
        if isinstance(reference, int):
            return reference - 1
        found = places(reference, self.names)
        if len(found) != 1:
            shown = ", ".join(self.names)[:200] or "columns without names"
            raise UserError(
                f"{self.where} has {'more than one' if found else 'no'} column {reference!r} (there: {shown})"
            )
        return found[0]

    def cell(self, line):
        """The number that begins a Line of the file. Raises UserError."""
        first = re.split(r"[,;\t]", self.lines[line.number - 1])[0].strip() if line.number <= len(self.lines) else ""
        if not is_number(first):
            raise UserError(f"{self.where}, line {line.number} begins with {first[:40]!r}, not with a number")
        return float(first)

    def shown(self, row, references):
        """The first of these columns that holds no number in a row, and what it holds there, as text."""
        for reference in references:
            series = self.series[self.find(reference)]
            if not np.isfinite(self.numbers(reference)[row]):
                cell = series[row]
                if cell is None and self.first and self.first + row <= len(self.lines):  # its text was not kept
                    found = [c for s in SEPARATORS for c in [cells(self.lines[self.first + row - 1], s)] if len(c) > 1]
                    at = self.find(reference)
                    cell = found[0][at] if found and at < len(found[0]) else None
                return f"{reference} is {'empty' if cell in (None, '') else repr(str(cell)[:40])}"
        return "the time is no time"

    def numbers(self, reference):
        """A column as (n,) float64, NaN where a cell is no finite number."""
        values = self.series[self.find(reference)]
        if not isinstance(values, np.ndarray):
            values = _numbers(values)
        values = values.astype(np.float64)
        values[~np.isfinite(values)] = np.nan
        return values

    def texts(self, reference):
        """A text column, blanks around cells taken off: (distinct values, place of each row among them (n,))."""
        import polars

        column = polars.Series(self.series[self.find(reference)])
        if column.dtype.is_float():  # a label 3 that was written as 3.0
            whole = column.cast(polars.Int64, strict=False)
            column = whole if (whole == column).all() else column
        text = column.cast(polars.String).fill_null("").str.strip_chars()
        values = text.unique(maintain_order=True)
        index = dict(zip(values.to_list(), range(len(values)), strict=True))
        return values.to_list(), text.replace_strict(index, return_dtype=polars.Int64).to_numpy()

    def seconds(self, clock):
        """The rows' times (n,) in seconds as its column and unit say, NaN where a cell is no time."""
        if clock.unit not in DATES:
            return self.numbers(clock.column) * SECONDS[clock.unit]
        import polars

        column = polars.Series(self.series[self.find(clock.column)])
        if column.dtype.is_temporal():
            return column.cast(polars.Datetime("us")).dt.epoch("us").to_numpy() / 1e6
        return dates(column.cast(polars.String), clock.unit)


def places(reference, names):
    """Where among the columns' names those are that a name, or a name with * for any text, means."""
    found = [i for i, name in enumerate(names) if name == reference]
    if not found and "*" in reference:
        found = [i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, reference)]
    return found


def named_unit(name):
    """The unit that ends a column's name in brackets, as the name spells it; None for none."""
    bracket = re.search(r"[(\[]([^()\[\]]*(?:\([^()]*\))?)[)\]]\s*$", name)
    return bracket and bracket[1]


def known_unit(text):
    """A unit as files spell it, as descriptions do; None for what is none of theirs."""
    return UNITS.get((text or "").strip().lower())


def _numbers(series):
    """A polars column as float64 (n,), NaN where it holds no number."""
    import polars

    if series.dtype == polars.String:
        series = series.str.strip_chars().cast(polars.Float64, strict=False)
    return series.cast(polars.Float64, strict=False).fill_null(np.nan).to_numpy().copy()


def dates(text, order):
    """Text times (a polars column) to seconds since 1970, UTC where no zone is given; NaN where there is none.

    `order` is iso (the year first), day-first or month-first; a time of day alone counts from midnight.
    """
    import polars

    found = text.str.extract_groups(DATE).struct.unnest()
    part = [found[name] for name in found.columns]
    a, b, c, hour, minute, second = (p.cast(polars.Int64, strict=False).fill_null(-1).to_numpy() for p in part[:6])
    year, month, day = {"iso": (a, b, c), "day-first": (c, b, a), "month-first": (c, a, b)}[order]
    fraction = ("0." + part[6].fill_null("0")).cast(polars.Float64, strict=False).to_numpy()
    noon = part[7].str.to_lowercase().fill_null("").to_numpy()
    hour = np.where(noon == "pm", hour % 12 + 12, np.where(noon == "am", hour % 12, hour))
    sign = np.where(part[8].str.starts_with("-").fill_null(False).to_numpy(), -1, 1)
    digits = part[8].str.replace_all(r"\D", "").cast(polars.Int64, strict=False).fill_null(0).to_numpy()
    zone = sign * (digits // 100 * 3600 + digits % 100 * 60)
    good = (hour >= 0) & (hour < 24) & (minute < 60) & (second < 61)
    dated = a >= 0
    good &= ~dated | ((year >= 1970) & (year < 2200) & (month >= 1) & (month <= 12) & (day >= 1) & (day <= 31))
    year, month, day = (np.where(dated & good, x, y) for x, y in ((year, 1970), (month, 1), (day, 1)))
    months = ((year - 1970) * 12 + month - 1).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64)
    seconds = (months + day - 1) * 86400 + hour * 3600 + minute * 60 + second - zone + fraction
    return np.where(good, seconds, np.nan)


# ---------------------------------------------------------------------------------------------- reading a file


def ending(name):
    """The table ending that a file's name has, in small letters; None for none."""
    return next((end for end in sorted(ENDINGS, key=len, reverse=True) if name.lower().endswith(end)), None)


def content_of(source, name, limit=LARGEST, most=None):
    """A file's bytes, unpacked if it is gzip; the first `most` of them. Raises UserError for one that is too large."""
    where = f"{source.label}: {name}"
    if source.sizes[name] > limit:
        raise UserError(
            f"{where} is {source.sizes[name] / 1e9:.1f} GB and files are read whole: split it, at {limit >> 30} GB"
        )
    with source.open(name) as stream:
        try:
            packed = gzip.GzipFile(fileobj=stream) if name.lower().endswith(".gz") else stream
            content = packed.read(limit + 1 if most is None else most)
        except (EOFError, gzip.BadGzipFile, OSError) as error:
            raise UserError(f"{where} is no whole gzip file ({error}); fetch it again") from error
    if len(content) > limit:
        raise UserError(f"{where} unpacks to more than {limit >> 30} GB and files are read whole: split it")
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):  # a spreadsheet's "Unicode text"
        content = content.decode("utf-16", "ignore").encode()
    return content


def lines_of(content):
    """The lines of a text file's first bytes, UTF-8 or else Latin-1."""
    cut = content[:HEAD]
    try:
        text = cut.decode("utf-8-sig", "strict" if len(content) <= HEAD else "ignore")
    except UnicodeDecodeError:
        text = cut.decode("latin-1")
    lines = re.split(r"\r\n|\n|\r", text)
    return lines[:-1] if len(content) > HEAD and len(lines) > 1 else lines


def cells(line, separator):
    """A line's cells, by the rules of CSV, without blanks around them."""
    try:
        if separator == " ":
            return line.split()
        return [cell.strip() for cell in next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])]
    except csv.Error:
        return []


def is_number(cell, decimal="."):
    try:
        float(cell.replace(decimal, "."))
        return True
    except ValueError:
        return False


def see(lines, form, wanted, where):
    """The Head of a text table from its first lines; `wanted` are the columns that the description names.

    Raises UserError where no line holds all of the names.
    """
    separators = [form["separator"]] if form["separator"] else list(SEPARATORS)
    start, names = form["skip"], []
    named = form["header"] and not all(isinstance(column, int) for column in wanted)
    if named:
        start, separator, names = _names(lines, separators, wanted, start, where)
    else:
        full = [line for line in lines[start:] if line.strip()][:50]
        if not full:
            raise UserError(f"{where} is empty, or shorter than 'skip' says")
        need = max([column for column in wanted if isinstance(column, int)], default=1)
        fitting = [s for s in separators if len(cells(full[-1], s)) >= need]
        if not fitting:
            raise UserError(f"{where} has no column {need}: {full[-1][:80]!r}")
        separator = max(fitting, key=lambda s: (s != ",", len(cells(full[-1], s))))
    rows = [row for line in lines[start : start + 200] if any(row := cells(line, separator))]
    width = max([len(names), *(len(row) for row in rows[:50])])
    loose = [row for row in rows[:50] if len(row) > max(len(names), 1) and any(row[len(names) :])]
    if names and len(loose) > len(rows[:50]) / 2:
        raise UserError(f"{where} has {len(names)} names, but {len(loose[0])} cells in a row: which column is which?")
    decimal = form["decimal"] or _decimal(rows[:50], separator)
    return Head(names, start + 1, separator, decimal, width)


def _names(lines, separators, wanted, skip, where):
    """(number of lines down to that of the names, separator, names)."""
    texts = [name for name in wanted if isinstance(name, str)]

    def held(names):
        return sum(bool(places(name, names)) for name in texts)

    best = (0, None, None, None)
    for number, line in enumerate(lines[skip : skip + 100], skip):
        for separator in separators:
            names = cells(line, separator)
            if held(names) > best[0] or best[1] is None and any(names):
                best = held(names), number + 1, separator, names
        if best[0] == len(texts):
            break
    if best[1] is None:
        raise UserError(f"{where} is empty or lacks its header")
    return best[1:]


def _decimal(rows, separator):
    """The sign between a number's whole and its parts, as the first rows show it."""
    flat = [cell for row in rows for cell in row]
    comma = separator != "," and any(re.fullmatch(r"[-+]?\d*,\d+([eE][-+]?\d+)?", cell) for cell in flat)
    return "," if comma else "."


def read(source, name, form, numbers, texts, units=None):
    """The Table of one file with the columns `numbers` and `texts` (references) of it.

    `units` {reference: unit} is what the description says of them. Raises UserError that names the file and the line.
    """
    where, end = f"{source.label}: {name}", ending(name)
    if end in (".npy", ".npz", ".mat"):
        return _arrays(source, name, where, end)
    if end == ".parquet":
        return _parquet(source, name, where, [*numbers, *texts])
    content = content_of(source, name)
    if not content.strip():
        raise UserError(f"{where} is empty")
    if form["row_end"]:
        content = content.replace(form["row_end"].encode(), b"\n")
    if b"\n" not in content[:HEAD]:
        content = content.replace(b"\r", b"\n")
    lines = lines_of(content)
    head = see(lines, form, [*numbers, *texts], where)
    table = Table(where, head.names, head.first)
    table.lines = lines
    number, text = {table.find(x) for x in numbers}, {table.find(x) for x in texts}
    _units(table, lines, head, number, units or {})
    body = _after(content, table.first - 1)
    if not body.strip():
        raise UserError(f"{where} has no rows below its header")
    if head.separator == " ":
        body = re.sub(rb"(?m)^[ \t]+", b"", re.sub(rb"[ \t]+", b" ", body))
    table.blank = len(re.findall(rb"(?m)^\s*?\r?\n", body))
    _parse(table, body, head, number, text)
    return table


def first_lines(source, name):
    """The lines of a text file's first bytes."""
    return lines_of(content_of(source, name, most=HEAD + 1))  # one more tells that the file goes on


def has_rows(source, name):
    """Whether a text table has more than its header; it may have no byte."""
    return len([line for line in first_lines(source, name) if line.strip()]) > 1


def _after(content, lines):
    """What stands below the first `lines` lines."""
    at = 0
    for _ in range(lines):
        at = content.find(b"\n", at) + 1
        if not at:
            return b""
    return content[at:]


def _units(table, lines, head, number, units):
    """Steps over a row of units under the names; raises UserError where the file names another unit than described."""
    index = next((i for i in range(head.first - 1, len(lines)) if lines[i].strip()), None)
    row = cells(lines[index], head.separator) if index is not None else []
    under = [row[i] if i < len(row) else "" for i in sorted(number)]
    is_units = under and all(under) and not any(is_number(cell) or re.match(r"[-+.,]*\d", cell) for cell in under)
    if is_units:
        table.first = index + 2
    for reference, unit in units.items():
        i = table.find(reference)
        name = head.names[i] if i < len(head.names) else ""
        for said in (row[i] if is_units and i < len(row) else None, named_unit(name)):
            known = known_unit(said)
            if known and known != unit.replace("²", "2").replace("µ", "u") and not unit.startswith("g/"):
                raise UserError(f"{table.where}: column {reference!r} is in {said} there, but described as {unit}")


def _parse(table, body, head, number, text):
    """Puts the columns `number` and `text` of the lines `body` into the table, null where a row has too many cells."""
    import polars

    if body.count(b'"') % 2:  # one is left open, and would take all that follows into a cell
        body = b"\n".join(b"" if line.count(b'"') % 2 else line for line in body.split(b"\n"))
    first = body.partition(b"\n")[0]  # made as wide as the table and a column more, which no row should reach
    missing = head.width + 1 - len(cells(first.decode("utf-8", "replace").rstrip("\r"), head.separator))
    body = first.rstrip(b"\r") + head.separator.encode() * max(missing, 0) + body[len(first) :]
    options = {"has_header": False, "separator": head.separator, "columns": sorted(number | text | {head.width})}
    options |= {"encoding": "utf8-lossy", "decimal_comma": head.decimal == ",", "truncate_ragged_lines": True}
    kinds = {i: polars.Float64 if i in number - text else polars.String for i in options["columns"]}
    kinds = {f"column_{i}": kind for i, kind in kinds.items()}
    try:
        frame = polars.read_csv(body, schema_overrides=kinds, ignore_errors=True, **options)
        if any(frame[f"column_{i}"].null_count() for i in number - text):  # " 1.5", "1,5 " and the like
            kinds = dict.fromkeys(kinds, polars.String)
            frame = polars.read_csv(body, schema_overrides=kinds, infer_schema=False, **options)
    except (polars.exceptions.PolarsError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{table.where}: not the table that was expected ({first})") from error
    more = frame[f"column_{head.width}"].is_not_null()
    for i in number | text:
        series = frame[f"column_{i}"]
        if i in number and series.dtype == polars.String and head.decimal == ",":
            series = series.str.replace(",", ".", literal=True)
        table.series[i] = series.set(more, None) if i in number and more.any() else series


def _parquet(source, name, where, wanted):
    import polars

    try:
        frame = polars.read_parquet(io.BytesIO(content_of(source, name)))
    except polars.exceptions.PolarsError as error:
        raise UserError(f"{where} is no Parquet file ({str(error).splitlines()[0]})") from error
    table = Table(where, frame.columns)
    for reference in wanted or frame.columns:
        i = table.find(reference)
        if i >= frame.width:
            raise UserError(f"{where} has {frame.width} columns, no number {reference}")
        table.series[i] = frame[frame.columns[i]]
    return table


def _arrays(source, name, where, end):
    """The columns of .npy, .npz and .mat files: an array (n,) is one of its name, (n, k) are NAME.1 to NAME.k."""
    try:
        if end == ".mat":
            from scipy.io import loadmat

            found = loadmat(io.BytesIO(content_of(source, name)))
        else:
            loaded = np.load(io.BytesIO(content_of(source, name)), allow_pickle=False)
            found = {"": loaded} if end == ".npy" else dict(loaded.items())
    except UserError:
        raise
    except Exception as error:  # scipy's reader raises whatever a damaged file brings about
        raise UserError(f"{where} cannot be read as {end} ({type(error).__name__}: {error})") from error
    arrays = {key: np.asarray(value) for key, value in found.items() if not key.startswith("__")}
    arrays = {key: a for key, a in arrays.items() if a.dtype.kind in "fiub" and 0 < a.ndim <= 2 and a.size}
    if not arrays:
        hint = "[a, t] = accellog(m); [w, t2] = angvellog(m); save arrays.mat a t w t2" if end == ".mat" else ""
        what = "timetables and other objects of MATLAB are not read: save arrays" if end == ".mat" else "use arrays"
        raise UserError(f"{where} holds no array of numbers; {what} {hint}".rstrip())
    table = Table(where, [])
    for key, array in arrays.items():
        if array.ndim == 2 and 1 in array.shape:
            array = array.reshape(-1)
        many = array.T if array.ndim == 2 else [array]
        for number, column in enumerate(many, 1):
            table.series[len(table.names)] = np.array(column, np.float64)
            table.names.append(key if array.ndim == 1 else f"{key}.{number}".lstrip("."))
    return table
