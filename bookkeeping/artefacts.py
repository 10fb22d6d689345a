"""Artefacts: everything the scripts write and read back, and where each of them came from.

Writes are atomic (a crash or Ctrl-C leaves the old file or the new one, never half of one), reads never run code of the
file (no pickles), and every artefact has a JSON of the same stem beside it: the resolved configuration, its own
fingerprint and those of the files it was made from. A later stage compares them, so that a shell loop cannot mix runs.
"""

import contextlib
import csv
import glob
import hashlib
import io
import itertools
import json
import os
import platform
import secrets
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch

from bookkeeping.commands import UserError
from bookkeeping.locks import locked

NUMBER = (int, float)
RECORD = {  # the form of the JSON beside an artefact (fits), its configuration apart
    "fingerprint": str,
    "made_from": {"*": str},
    "epochs?": (int, type(None)),
    "source_test?": dict.fromkeys(("windows?", "accuracy?", "f1_macro?", "ece?", "ece_uncalibrated?"), NUMBER),
}
BLOCK = 1 << 16  # bytes of a sample of a large file (fingerprint)


@contextlib.contextmanager
def atomic(path, record=None):
    """Open `path` for writing in binary: a temporary file beside it that takes its place when the block ends well.

    `record` (make_record) goes to the JSON beside `path` just before: a crash in between leaves a file that its JSON
    does not describe, which is refused later, but never a file without one, which would pass for a released one.
    Raises UserError if the folder cannot be written to or the disk is full; the old file is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        with open(temporary, "xb") as handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        if record is not None:
            save_json(record_path(path), {"artefact": path.name, "fingerprint": fingerprint(temporary)} | record)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself survives a power cut only if the folder is written too
        finally:
            os.close(folder)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; nothing was changed") from error
    finally:
        with contextlib.suppress(OSError):  # after the rename it is no longer there
            os.unlink(temporary)


def remove_leftovers(path):
    """Remove what killed runs left of `path`: temporary files that nobody has written to for a day."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.????????"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > 86400:
                old.unlink()


def check_writable(path):
    """Raise UserError if `path` cannot be written, before a long run instead of at its end."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
        if path.is_dir():
            raise IsADirectoryError("there is a folder of that name")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}; nothing was changed") from error


def save_npy(path, array, record=None):
    """Write `array` as an .npy file, and its record if given (see atomic), atomically."""
    with atomic(path, record) as handle:
        np.lib.format.write_array(handle, np.ascontiguousarray(array), allow_pickle=False)


@contextlib.contextmanager
def npy_writer(path, shape, dtype=np.float32, record=None):
    """Write an .npy file of a known shape piece by piece, atomically: yields a function that takes the next rows.

    The whole array is never in memory; raises ValueError if the pieces don't add up to `shape`.
    """
    dtype = np.dtype(dtype)
    left = shape[0]
    with atomic(path, record) as handle:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": tuple(shape)}
        np.lib.format.write_array_header_1_0(handle, header)

        def write(rows):
            nonlocal left
            if rows.shape[1:] != tuple(shape[1:]) or rows.dtype != dtype:
                raise ValueError(f"rows of {rows.shape} {rows.dtype} for an array of {shape} {dtype}")
            left -= len(rows)
            handle.write(np.ascontiguousarray(rows).data)

        yield write
        if left:
            raise ValueError(f"{path}: {left} rows of {shape[0]} were not written")


def save_json(path, value):
    """Write `value` as readable JSON, atomically."""
    with atomic(path) as handle:
        handle.write((json.dumps(value, indent=2) + "\n").encode())


def once_each(pairs):
    """A dict of JSON's (key, value) pairs. Raises ValueError for a key that stands there twice."""
    result = dict(pairs)
    for key in result:
        if sum(name == key for name, _ in pairs) > 1:
            raise ValueError(f"key {key!r} stands there twice")
    return result


def read_json(path, what):
    """Read a JSON file; `what` says in an error message what it should have been. Raises UserError."""
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle, object_pairs_hook=once_each)
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, too many digits
        raise UserError(f"{path} is not readable as {what}: {error}; mend it") from error


def load_npy(path, hint):
    """Open an .npy file memory-mapped and read-only, without unpickling anything.

    `hint` says how to get the file. Raises UserError if it is missing, truncated, pickled or no array of numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing; {hint}")
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # numpy raises anything from SyntaxError to OverflowError on a malformed header
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable .npy file of numbers ({first[:120]}); {hint}") from error
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path} holds {array.dtype}, not numbers; {hint}")
    return array


def check_unpacks(path):
    """Raise ValueError if a zip archive, as .pt and .npz are, says that it unpacks to far more than it is.

    Theirs are stored, not compressed. Its readers hold a member to what the archive says.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > 10 * os.path.getsize(path) + (1 << 20):
            raise ValueError(f"it would unpack to {size / 1e9:.3g} GB")


def read_rows(path, rows, piece=2048):
    """The given rows of an .npy file as an array in memory.

    In pieces, each through a mapping of its own: pages that were read once don't count as memory in use any more.
    """
    rows = np.asarray(rows)
    first = np.lib.format.open_memmap(path, mode="r")
    result = np.empty((len(rows), *first.shape[1:]), first.dtype)
    for start in range(0, len(rows), piece):
        part = np.lib.format.open_memmap(path, mode="r")
        result[start : start + piece] = part[rows[start : start + piece]]
    return result


def fingerprint(path):
    """SHA-256 of a file; of one over 64 MiB, of its length and 256 evenly spaced blocks.

    The sample is enough to tell artefacts apart (another checkpoint changes every block of an embedding) and saves
    reading gigabytes only to find that nothing changed.
    """
    digest = hashlib.sha256()
    size = os.path.getsize(path)
    with open(path, "rb") as handle:
        if size <= 1 << 26:
            while block := handle.read(1 << 20):
                digest.update(block)
        else:
            digest.update(str(size).encode())
            for offset in np.linspace(0, size - BLOCK, 256).astype(np.int64):
                handle.seek(int(offset))
                digest.update(handle.read(BLOCK))
    return digest.hexdigest()


def record_path(path):
    """The JSON beside an artefact: same folder, same stem."""
    return Path(path).with_suffix(".json")


def make_record(config, made_from, device, **more):
    """What goes into the JSON beside an artefact: configuration, its parents' fingerprints, versions, device."""
    return {
        "config": config,
        "made_from": {str(parent): fingerprint(parent) for parent in made_from},
        "versions": {"python": platform.python_version(), "numpy": np.__version__, "torch": torch.__version__},
        "device": device,
    } | more


def fits(value, wanted):
    """Whether a JSON value has the form `wanted`: a type or some, [form of each], {key: form}.

    A key with a question mark may be absent; the key * stands for all.
    """
    if isinstance(wanted, list):
        return isinstance(value, list) and all(fits(item, wanted[0]) for item in value)
    if not isinstance(wanted, dict):
        return isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool))
    if not isinstance(value, dict):
        return False
    if "*" in wanted:
        return all(fits(item, wanted["*"]) for item in value.values())
    names = {key.removesuffix("?"): key.endswith("?") for key in wanted}
    forms = dict(zip(names, wanted.values(), strict=True))
    return all(fits(value[name], forms[name]) if name in value else absent for name, absent in names.items())


def load_record(path, config_form=dict):
    """The JSON beside an artefact, or None where there is none (a file of the released code) or no artefact.

    Raises UserError if it belongs to another file than the one that lies there now, or if its configuration has not
    the form that is wanted (fits).
    """
    json_path = record_path(path)
    if not json_path.exists() or not os.path.isfile(path):
        return None
    record = read_json(json_path, "the JSON that goes with an artefact")
    if not fits(record, RECORD | {"config": config_form}):
        raise UserError(f"{json_path} was not written by these scripts; remove it, or make {Path(path).name} again")
    if record["fingerprint"] != fingerprint(path):
        raise UserError(
            f"{path} is not the file that {json_path.name} describes; make it again, or, if you "
            f"replaced it on purpose, remove {json_path}"
        )
    return record


def check_parents(path, record, repeat):
    """Refuse the artefact `path` if one of the files it was made from has changed since. Raises UserError.

    A parent that is gone (an embedding removed to save space) is no contradiction.
    """
    for parent, was in record["made_from"].items():
        if os.path.isfile(parent) and fingerprint(parent) != was:
            raise UserError(f"{path} was made from an older {parent}; repeat: {repeat}")


def save_state(path, state, record=None):
    """Write a state dict (name -> tensor), and its record if given (see atomic), atomically.

    torch.save gets an open file: with a path it would put the file's stem into the archive, and equal weights
    would give unequal files.
    """
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}, buffer)
    with atomic(path, record) as handle:
        handle.write(buffer.getbuffer())


def states(**modules):
    """Copies of networks' states under their names, which further training does not touch."""
    return {name: {k: tensor.clone() for k, tensor in m.state_dict().items()} for name, m in modules.items()}


def load_state(path, module, dead=(), hint=""):
    """Load a state dict into `module` strictly: exactly its names and shapes, finite numbers.

    Names that start with one of `dead` are groups of weights that the released code saves and never uses: ignored.
    Raises UserError that names the file and the first name that is wrong.
    """
    if not Path(path).is_file():
        raise UserError(f"{path} is missing; {hint}")
    try:
        check_unpacks(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises anything from KeyError to UnpicklingError on a foreign file
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable checkpoint ({first[:120]}); {hint}") from error
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, torch.Tensor) for name, value in state.items()
    ):
        raise UserError(f"{path} is not a plain state dict (parameter name -> tensor); {hint}")
    state = {name: tensor for name, tensor in state.items() if not name.startswith(tuple(dead))}
    wanted = module.state_dict()
    for name in dict.fromkeys([*wanted, *state]):
        if name not in state:
            raise UserError(f"{path} lacks the weights {name!r}: another model's checkpoint? {hint}")
        if name not in wanted:
            raise UserError(f"{path} has weights {name!r} that this model does not: another model's? {hint}")
        if state[name].shape != wanted[name].shape:
            shapes = f"{tuple(state[name].shape)} instead of {tuple(wanted[name].shape)}"
            raise UserError(f"{path}: weights {name!r} have shape {shapes}; does the model config fit? {hint}")
        kinds = [(t.layout, t.device.type, t.is_floating_point()) for t in (state[name], wanted[name])]
        if kinds[0] != kinds[1]:
            raise UserError(f"{path}: weights {name!r} are no plain numbers of the right type; {hint}")
        if not torch.isfinite(state[name].to(wanted[name].dtype)).all():
            raise UserError(f"{path}: weights {name!r} hold NaN or infinity; {hint}")
    module.load_state_dict(state)


def save_table(path, rows):
    """Write rows (dicts with the same keys) as CSV, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic(path) as handle:
        handle.write(text.getvalue().encode())


def read_table(path, first=()):
    """The rows of a CSV file with a header as dicts of text.

    Raises UserError unless each row has all its columns, and the table those of `first` in front.
    """
    return read_columns(path, first)[1]


def read_columns(path, first=()):
    """(the columns, the rows) of read_table; an empty file has neither."""
    try:
        with open(path, newline="", encoding="utf-8") as handle:
            reader = csv.DictReader(handle, strict=True)
            rows, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} is not a readable table ({error}); move it away and repeat") from error
    if len(set(columns)) < len(columns) or any(None in row or None in row.values() for row in rows):
        raise UserError(f"{path} has rows that don't fit its header; move it away and repeat")
    if columns and (wrong := [(c, w) for c, w in itertools.zip_longest(columns[: len(first)], first) if c != w]):
        found, wanted = wrong[0]
        raise UserError(f"{path} is another table (column {found!r} instead of {wanted!r}); move it away and repeat")
    return columns, rows


def append_row(path, row, first=None):
    """Append one row (a dict) to a CSV file with a header, whole or not at all, even with two runs at once.

    A lock file serialises the writers; the table is rewritten and renamed, so a crash leaves whole rows; a symbolic
    link stays one. Columns that an older table lacks are added at its end, empty for the old rows. The table's first
    columns must be `first`, those of the row if None is given, else it is another table, which is refused.
    """
    path = Path(os.path.realpath(path))
    with locked(path.with_name(f".{path.name}.lock")):
        columns, rows = read_columns(path, first or list(row)[:1]) if path.exists() else ([], [])
        columns = list(dict.fromkeys([*columns, *row]))
        save_table(path, [{column: r.get(column, "") for column in columns} for r in [*rows, row]])


def agreed(flag, given, recorded, where, default=None):
    """A setting that an artefact's JSON records: that value, unless the user's flag says otherwise, an error.

    `recorded` is None where there is no JSON (a released file): then the flag counts, or `default`.
    """
    if recorded is None:
        return default if given is None else given
    if given is not None and given != recorded:
        raise UserError(f"{flag} {given} contradicts {where}, made with {recorded}; leave {flag} out, or make it again")
    return recorded


def differing(old, new, prefix=""):
    """Names of the keys in which two nested configurations differ, with both values."""
    names = []
    for key in dict.fromkeys([*old, *new]):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            names += differing(a, b, f"{prefix}{key}.")
        elif a != b or (key in old) != (key in new):
            then, now = (a if key in old else "absent"), (b if key in new else "absent")
            names.append(f"{prefix}{key} ({then} then, {now} now)")
    return names


def check_same(where, recorded, now):
    """Raise UserError if an artefact's JSON recorded other settings than those of `now` (a nested dict)."""
    keys = differing({key: recorded.get(key, now[key]) for key in now}, now)
    if keys:
        raise UserError(f"{where} was made with other settings: {', '.join(keys)}; restore them, or make it again")
