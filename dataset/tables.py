"""Text tables: white-space separated numbers, and CSV files whole or in blocks; a bad cell is named with its line.

CSV goes through polars: it reads hhar's 2.5 GB from a stream, block by block, in the least time and memory of the
readers tried (benchmarks/prepare.py), straight out of a zip.
"""

import csv
import io

import numpy as np

from bookkeeping.commands import UserError

BLOCK = 32 << 20  # bytes of a large CSV file that are parsed at a time


def read_table(source, name, columns, whole=False, separator=None):
    """A table of numbers without a header: (rows, columns) float64, or int64 if `whole`. Raises UserError.

    `separator` stands between numbers, blanks if None.
    """
    with source.open(name) as stream:
        content = stream.read()
    where = f"{source.label}: {name}"
    if not content.strip():
        raise UserError(f"{where} is empty; fetch it again")
    try:
        kind = np.int64 if whole else np.float64
        table = np.loadtxt(io.BytesIO(content), dtype=kind, ndmin=2, comments=None, delimiter=separator)
    except (ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{where} is no table of {columns} numbers a line: {error}") from error
    if table.shape[1] != columns:
        raise UserError(f"{where} has {table.shape[1]} columns, not {columns}; is it the original file?")
    bad = np.flatnonzero(~np.isfinite(table).all(1))
    if len(bad):
        raise UserError(f"{where}, line {bad[0] + 1}: NaN or infinity; fetch it again")
    return table


def header(source, name, lines=1):
    """The first `lines` lines of a CSV file, as stripped cells."""
    with source.open(name) as stream:
        rows = [stream.readline(1 << 20) for _ in range(lines)]
    try:
        text = [row.decode("utf-8-sig").rstrip("\r\n") for row in rows]
    except UnicodeDecodeError as error:
        raise UserError(f"{source.label}: {name} is not UTF-8 text: {error}") from error
    if not all(text):
        raise UserError(f"{source.label}: {name} is empty or lacks its header; fetch it again")
    return [[cell.strip() for cell in row] for row in csv.reader(text, skipinitialspace=True)]


def read_csv(source, name, types, skip=1):
    """Columns of a CSV file: {key: array}, float64 or int64; for text (distinct values, each row's place among them).

    `types` maps a key to (index of the column, float, int or str); `skip` is the number of header lines.
    Raises UserError that names the file, line and cell for text in a number column, an empty cell or a non-finite
    number, and for a file without rows.
    """
    with source.open(name) as stream:
        for _ in range(skip):
            stream.readline()
        content = stream.read().rstrip()
    if not content:
        raise UserError(f"{source.label}: {name} has no rows below its header; fetch it again")
    return _columns(content, types, f"{source.label}: {name}", skip)


def csv_blocks(source, name, types):
    """`read_csv` for a file larger than memory: yields {key: array} for about BLOCK bytes of whole lines at a time."""
    where, line = f"{source.label}: {name}", 1
    with source.open(name) as stream:
        stream.readline()
        rest = b""
        while block := stream.read(BLOCK):
            end = block.rfind(b"\n") + 1
            content, rest = rest + block[:end], block[end:] if end else rest + block
            if len(rest) > BLOCK:
                raise UserError(f"{where}, line {line + 1}: a line of more than {BLOCK >> 20} MB; is it a CSV file?")
            if content and end:
                yield _columns(content, types, where, line)
                line += content.count(b"\n")
        if rest.strip():
            yield _columns(rest, types, where, line)
        elif line == 1:
            raise UserError(f"{where} has no rows below its header; fetch it again")


def _columns(content, types, where, lines_before):
    import polars

    kinds = {float: polars.Float64, int: polars.Int64, str: polars.Categorical}
    # polars names the columns of a headerless file column_0, column_1, ... and gives the chosen ones in file order
    options = {"has_header": False, "columns": sorted({index for index, _ in types.values()})}
    schema = {f"column_{index}": kinds[kind] for index, kind in types.values()}
    try:
        frame = polars.read_csv(content, schema_overrides=schema, **options)
        series = {key: frame[f"column_{index}"] for key, (index, _) in types.items()}
        clean = not any(series[key].null_count() for key, (_, kind) in types.items() if kind is not str)
    except (polars.exceptions.PolarsError, UnicodeDecodeError):
        clean = False
    if not clean:
        series = _cell_by_cell(content, types, options, where, lines_before)
    arrays = {}
    for key, (_, kind) in types.items():
        arrays[key] = _places(series[key]) if kind is str else series[key].to_numpy()
        if kind is float and not np.isfinite(arrays[key]).all():
            row = int(np.flatnonzero(~np.isfinite(arrays[key]))[0])
            raise UserError(f"{where}, line {lines_before + row + 1}: {key} is {arrays[key][row]}, not a finite number")
    return arrays


def _places(text):
    """A text column as (its distinct values, each row's place among them): a Python string per row would cost more
    than all the rest of reading hhar."""
    import polars

    text = text.cast(polars.Categorical).fill_null("")
    values = text.unique(maintain_order=True)
    codes = values.to_physical().to_numpy()
    place = np.zeros(codes.max() + 1, np.int64)
    place[codes] = np.arange(len(codes))
    return values.cast(polars.String).to_list(), place[text.to_physical().to_numpy()]


def _cell_by_cell(content, types, options, where, lines_before):
    """The same columns, read as text and then converted: tolerates blanks around numbers, names the first bad cell."""
    import polars

    try:
        frame = polars.read_csv(content, infer_schema=False, **options)
        series = {key: frame[f"column_{index}"] for key, (index, _) in types.items()}
    except (polars.exceptions.PolarsError, UnicodeDecodeError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{where}, after line {lines_before}: not the table that was expected ({first})") from error
    worst = None
    for key, (_, kind) in types.items():
        if kind is str:
            continue
        text = series[key]
        series[key] = text.str.strip_chars().cast(polars.Int64 if kind is int else polars.Float64, strict=False)
        rows = np.flatnonzero(series[key].is_null().to_numpy())
        if len(rows) and (worst is None or rows[0] < worst[0]):
            worst = int(rows[0]), key, text[int(rows[0])], kind
    if worst is not None:
        row, key, cell, kind = worst
        shown = "empty" if cell is None or not cell.strip() else repr(cell[:40])
        wanted = "a whole number" if kind is int else "a number"
        raise UserError(f"{where}, line {lines_before + row + 1}: {key} is {shown}, not {wanted}")
    return series
