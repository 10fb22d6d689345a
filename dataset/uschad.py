"""uschad: USC-HAD (14 people, a sensor at the front right hip, 100 Hz), as distributed."""

import io

import numpy as np
import scipy.io

from bookkeeping.commands import UserError
from dataset.windows import GRAVITY, RATE, STEPS, Windows, window_starts

EXPECTED = 2018
PEOPLE, TRIALS = 14, 5
POOLED = 100 // RATE  # samples at 100 Hz whose mean is one at 20 Hz
ACTIVITIES = {1: "walking", 4: "upstairs", 5: "downstairs", 8: "sitting", 9: "standing"}  # walking: forward alone
FILE = r"(?:.*/)?Subject(\d+)/a(\d+)t(\d+)\.mat"
LARGEST = 1 << 26  # bytes of a file: the real ones have up to a few hundred thousand


def convert(source, partial=False):
    """Windows by person, activity and trial; column user. `partial` accepts missing files.

    Raises UserError for missing or malformed files.
    """
    files = {tuple(map(int, match.groups())): name for name, match in source.matching(FILE).items()}
    people = range(1, PEOPLE + 1)
    missing = [(p, a, t) for p in people for a in ACTIVITIES for t in range(1, TRIALS + 1) if (p, a, t) not in files]
    if missing and not partial:
        first = "Subject{}/a{}t{}.mat".format(*missing[0])
        raise UserError(
            f"{source.label} lacks {first} and {len(missing) - 1} more of {PEOPLE * len(ACTIVITIES) * TRIALS} files: "
            "give the whole set, or --partial to take what is there"
        )
    data, activity, user = [np.zeros((0, STEPS, 6), np.float32)], [], []
    for (person, number, _), name in sorted(files.items()):
        if number not in ACTIVITIES:
            continue
        if person not in people:
            raise UserError(f"{source.label}: {name}: subjects are numbered 1 to {PEOPLE}")
        samples = _samples(source, name)
        starts, _ = window_starts([0], [len(samples)], STEPS)
        data.append(samples[starts[:, None] + np.arange(STEPS)].astype(np.float32))
        activity += [ACTIVITIES[number]] * len(starts)
        user += [person - 1] * len(starts)
    ids = np.array(user, np.int64), [str(i) for i in people]
    return Windows(np.concatenate(data), np.array(activity, dtype="<U10"), {"user": ids})


def _samples(source, name):
    """A trial at 20 Hz: (n, 6), acceleration with gravity in m/s², rotation rate in rad/s; the files have g, deg/s."""
    if source.sizes[name] > LARGEST:
        raise UserError(f"{source.label}: {name} has {source.sizes[name]} bytes; fetch the archive again")
    with source.open(name) as stream:
        content = io.BytesIO(stream.read())
    try:
        readings = np.asarray(scipy.io.loadmat(content, variable_names=["sensor_readings"])["sensor_readings"], float)
    except Exception as error:  # SciPy raises anything from KeyError to zlib.error on a damaged file
        raise UserError(f"{source.label}: {name} holds no readable sensor_readings; fetch the archive again") from error
    if readings.ndim != 2 or readings.shape[1] != 6 or not np.isfinite(readings).all():
        raise UserError(f"{source.label}: {name}: sensor_readings is {readings.shape}, not (samples, 6) numbers")
    pooled = readings[: len(readings) // POOLED * POOLED].reshape(-1, POOLED, 6).mean(1)
    return pooled * np.repeat([GRAVITY, np.pi / 180], 3)
