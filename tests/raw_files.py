"""Raw files in the exact layouts of the data sets, small and made up, for the tests of data preparation."""

import io
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest

from dataset import prepare
from dataset.archives import open_source

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))


GB = 1 << 30  # more than any made-up archive unpacks to


@pytest.fixture(autouse=True)
def project(tmp_path, monkeypatch):
    """Every test that imports this works in an empty folder; data_config.json is the tracked one until it changes."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")


def run(*argv):
    """prepare.py's main with these flags."""
    return prepare.main(prepare.get_args([str(a) for a in argv]))


def convert(module, path, **options):
    """The windows that a data set's converter makes of the archive or folder at `path`."""
    with open_source(path, GB, module.FILE) as source:
        return module.convert(source, **options)


def shared(name):
    """A reference file from beside the project; skips where it is absent (the same is tested on made-up files)."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"real sample {name} is not at hand")
    return path


def zipped(path, files):
    """A zip at `path` of {name: bytes or str}."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def written(folder, files):
    """The files {name: bytes or str} in a folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def lines(table, separator):
    """Rows of numbers as text."""
    return "".join(separator.join(repr(float(value)) for value in row) + "\n" for row in table)


def motion_samples(rng, n, still=False):
    """(n, 6) in g and rad/s at 50 Hz: gravity plus smooth motion."""
    t = np.arange(n)[:, None] / 50
    phase = rng.uniform(0, 6, 6)
    wave = sum(np.sin(2 * np.pi * f * t + phase * f) / f for f in (1.0, 2.0, 3.5))
    return np.array([0.2, 0.9, 0.3, 0, 0, 0]) + wave * (0.002 if still else 0.3) + rng.normal(0, 1e-4, (n, 6))


# ---------------------------------------------------------------------------------------------- uci


def hapt_files(experiments):
    """RawData files of experiments (number, user, samples (n, 6), bouts (activity, start, end)), the end included."""
    files, labels = {}, ""
    for number, user, samples, bouts in experiments:
        name = f"exp{number:02d}_user{user:02d}.txt"
        files[f"RawData/acc_{name}"] = lines(samples[:, :3], " ")
        files[f"RawData/gyro_{name}"] = lines(samples[:, 3:], " ")
        labels += "".join(f"{number} {user} {kind} {start} {end}\n" for kind, start, end in bouts)
    return files | {"RawData/labels.txt": labels}


def small_hapt(seed=0, users=30):
    """One experiment for each of 30 users: walking, a transition, sitting, upstairs, downstairs."""
    rng = np.random.default_rng(seed)
    experiments = []
    for user in range(1, users + 1):
        samples = np.concatenate([motion_samples(rng, 700), motion_samples(rng, 350, True), motion_samples(rng, 700)])
        bouts = [(1, 10, 649), (7, 650, 699), (4, 700, 1049), (2, 1060, 1361), (3, 1370, 1671)]
        experiments.append((user, user, samples, bouts))
    return experiments


def hapt_pickle(experiments, monkeypatch):
    """The bytes of HAPT.pkl for such experiments: protocol 1 and the names of an old pandas and NumPy."""

    def stand_in(module, name, kind):
        value = type(name, (), {}) if kind == "class" else types.FunctionType((lambda *_: None).__code__, {}, name)
        value.__module__, value.__qualname__ = module, name
        parts = module.split(".")
        for i in range(1, len(parts) + 1):
            part = ".".join(parts[:i])
            if part not in sys.modules or part == module and not hasattr(sys.modules[part], "_stands_in"):
                fake = types.ModuleType(part)
                fake._stands_in = True
                monkeypatch.setitem(sys.modules, part, fake)
        setattr(sys.modules[module], name, value)
        return value

    frame_class = stand_in("pandas.core.frame", "DataFrame", "class")
    manager_class = stand_in("pandas.core.internals.managers", "BlockManager", "class")
    new_index = stand_in("pandas.core.indexes.base", "_new_Index", "function")
    index_class = stand_in("pandas.core.indexes.base", "Index", "class")
    rebuild = stand_in("numpy.core.multiarray", "_reconstruct", "function")
    manager_class.__getstate__ = lambda self: self.held

    class Array:
        def __init__(self, array, fortran):
            self.array, self.fortran = array, fortran

        def __reduce__(self):
            array = self.array
            content = list(array) if array.dtype == object else array.tobytes("F" if self.fortran else "C")
            state = (1, array.shape, np.dtype(array.dtype), self.fortran, content)
            return rebuild, (np.ndarray, (0,), b"b"), state

    class Index:
        def __init__(self, names):
            self.names = names

        def __reduce__(self):
            array = Array(np.array(self.names, dtype=object), False)
            return new_index, (index_class, {"data": array, "name": None})

    from dataset.uci import COLUMNS

    users = {user: [] for user in range(1, 31)}
    for number, user, samples, bouts in experiments:
        label = np.full(len(samples), -1)
        for kind, start, end in bouts:
            label[start : end + 1] = kind
        frame, manager = frame_class(), manager_class()
        integers = np.stack([np.full(len(samples), number), label])
        blocks = [Array(np.asarray(samples.T), number % 2 == 0), Array(integers, False)]
        manager.held = ([Index(COLUMNS), Index(["rows"])], blocks, [Index(COLUMNS[:6]), Index(COLUMNS[6:])], {})
        frame._data = manager
        users[user].append(frame)
    content = io.BytesIO()
    pickle._Pickler(content, protocol=1).dump(users)
    return content.getvalue()


# ---------------------------------------------------------------------------------------------- motion

MOTION_HEADER = (
    ",attitude.roll,attitude.pitch,attitude.yaw,gravity.x,gravity.y,gravity.z,rotationRate.x,rotationRate.y,"
    "rotationRate.z,userAcceleration.x,userAcceleration.y,userAcceleration.z\n"
)


def motion_file(samples):
    """One sub_N.csv of samples (n, 6) in g and rad/s: gravity is 0.75 of the acceleration, the rest the user's."""
    acc, gyro = samples[:, :3], samples[:, 3:]
    table = np.concatenate([np.full((len(acc), 3), 0.5), 0.75 * acc, gyro, 0.25 * acc], axis=1)
    return MOTION_HEADER + "".join(
        f"{i}," + ",".join(repr(float(value)) for value in row) + "\n" for i, row in enumerate(table)
    )


def small_motion(rows=None, length=300, seed=0):
    """All 15 trials of 24 subjects, `length` to length + 9 rows each, or as `rows` {(trial, user): n}: {name: text}."""
    from dataset.motion import TRIALS

    rng = np.random.default_rng(seed)
    texts = {}  # writing 360 different files takes seconds; of each length and kind one will do
    files = {}
    for trial in TRIALS:
        for user in range(1, 25):
            key = (rows or {}).get((trial, user), length + user % 10), trial[:3] in ("sit", "std")
            if key not in texts:
                texts[key] = motion_file(motion_samples(rng, *key))
            files[f"A_DeviceMotion_data/{trial}/sub_{user}.csv"] = texts[key]
    return files


# ---------------------------------------------------------------------------------------------- shoaib

SHOAIB_POSITIONS = ("left_pocket", "right_pocket", "wrist", "upper_arm", "belt")
SHOAIB_CELLS = ["time_stamp", "Ax", "Ay", "Az", "Lx", "Ly", "Lz", "Gx", "Gy", "Gz", "Mx", "My", "Mz", ""]


def shoaib_file(parts, seed=0, width=71):
    """One Participant_N.csv: parts are (activity as spelt, rows). Acc xyz of position p are near 9.8 * (0, 0, 1) + p.

    Every channel is its own ramp, so that a wrong column shows: value = 1000 p + 10 channel + row / 1000 for the cells
    beyond acceleration and rotation rate, a few units for those.
    """
    rng = np.random.default_rng(seed)
    head = ",".join(f"{p},,,,,,,,,,,,," for p in SHOAIB_POSITIONS)
    second = ",".join(",".join(SHOAIB_CELLS) for _ in SHOAIB_POSITIONS)
    text = [head + (",Activity" if width == 71 else ""), second + (",Activity" if width == 71 else "")]
    if width == 70:  # the activity in the last position's empty column
        text[1] = text[1][:-1] + ",Activity" if not text[1].endswith(",") else text[1] + "Activity"
    row = 0
    for activity, count in parts:
        for _ in range(count):
            cells = []
            for place in range(5):
                acc = np.array([0.1 * place, 1.0, 9.7]) + rng.normal(0, 0.3, 3)
                gyro = np.array([0.02, 0.04, 0.06]) * (place + 1) + rng.normal(0, 0.1, 3)
                wrong = [f"{1000 * place + 10 * i + row / 1000:.3f}" for i in range(6)]
                numbers = [*acc.round(6), *wrong[:3], *gyro.round(6), *wrong[3:]]
                cells += [str(1390000000000 + 20 * row), *map(str, numbers), ""]
            if width == 70:
                cells.pop()
            text.append(",".join([*cells, activity]))
            row += 1
    return "\n".join(text) + "\n"


# ---------------------------------------------------------------------------------------------- hhar

HHAR_HEADER = "Index,Arrival_Time,Creation_Time,x,y,z,User,Model,Device,gt\n"
HHAR_START = 1424696631900000000  # a multiple of 50 ms


def hhar_rows(slots, per_slot=4, label="walk", user="a", model="nexus4", device=None, level=0.0, start=HHAR_START):
    """Rows [time in ns, x, y, z, user, model, device, label] of consecutive slots of 50 ms.

    `slots` is a range of slot numbers after `start`; in slot k, x is level + k, y is level + 2 k + the row's offset, of
    mean 0, and z is 9.75 + level.
    """
    rows = []
    for k in slots:
        for i in range(per_slot):
            time = start + 50_000_000 * k + 50_000_000 * i // per_slot
            offset = i - (per_slot - 1) / 2
            values = (level + k, level + 2 * k + offset, 9.75 + level)
            rows.append([time, *values, user, model, device or f"{model}_1", label])
    return rows


def hhar_csv(rows):
    """Phones_*.csv of such rows, in that order; a row that ends with a number arrived that many ms later."""
    text = HHAR_HEADER
    for i, (time, x, y, z, *names) in enumerate(rows):
        late = names.pop() if isinstance(names[-1], int) else 0
        text += f"{i},{time // 10**6 + 5 + late},{time},{float(x)!r},{float(y)!r},{float(z)!r},{','.join(names)}\n"
    return text


def hhar_files(acc, gyro):
    """Both files of the data set, in its folder."""
    folder = "Activity recognition exp"
    return {
        f"{folder}/Phones_accelerometer.csv": hhar_csv(acc),
        f"{folder}/Phones_gyroscope.csv": hhar_csv(gyro),
    }
