"""motion: MotionSense (24 users, iPhone in the front trouser pocket, 50 Hz), A_DeviceMotion_data as distributed."""

import numpy as np

from bookkeeping.commands import UserError
from dataset.tables import header, read_csv
from dataset.windows import GRAVITY, SAMPLES_50, Windows, pool_50_hz, window_starts

USERS = 24
EXPECTED = 4108
COPIES = 34  # windows that the archive holds twice: sit_5/sub_1.csv and sit_13/sub_1.csv are the same recording
TRIALS = (
    "dws_1",
    "dws_11",
    "dws_2",
    "jog_16",
    "jog_9",
    "sit_13",
    "sit_5",
    "std_14",
    "std_6",
    "ups_12",
    "ups_3",
    "ups_4",
    "wlk_15",
    "wlk_7",
    "wlk_8",
)
ACTIVITIES = {
    "dws": "downstairs",
    "ups": "upstairs",
    "sit": "sitting",
    "std": "standing",
    "wlk": "walking",
    "jog": "jogging",
}
# --raw may be the archive, a folder with A_DeviceMotion_data in it, or that folder itself
FILE = rf"(?:(?:.*/)?A_DeviceMotion_data/)?({'|'.join(ACTIVITIES)})_(\d+)/sub_(\d+)\.csv"
COLUMNS = [f"{sensor}.{axis}" for sensor in ("gravity", "userAcceleration", "rotationRate") for axis in "xyz"]


def convert(source, partial=False):
    """Windows in the order of trial folder (lexicographic) and subject; `partial` accepts missing files."""
    files = source.matching(FILE)
    trials = {}  # (trial folder, subject) -> name
    for name, match in files.items():
        trials[f"{match[1]}_{int(match[2])}", int(match[3])] = name
    missing = [
        f"{trial}/sub_{user}.csv" for trial in TRIALS for user in range(1, USERS + 1) if (trial, user) not in trials
    ]
    if missing and not partial:
        raise UserError(
            f"{source.label} lacks {missing[0]} and {len(missing) - 1} more of {len(TRIALS) * USERS} files: "
            "give the whole set, or --partial to take what is there"
        )
    data, activity, user = [], [], []
    for (trial, subject), name in sorted(trials.items()):
        if not 1 <= subject <= USERS:
            raise UserError(f"{source.label}: {name}: subjects are numbered 1 to {USERS}")
        samples = _samples(source, name)
        starts, _ = window_starts([0], [len(samples)], SAMPLES_50)
        data.append(pool_50_hz(samples, starts))
        activity.append(np.full(len(starts), ACTIVITIES[trial[:3]], dtype="<U10"))
        user.append(np.full(len(starts), subject - 1))
    ids = (np.concatenate(user), [str(i + 1) for i in range(USERS)])
    return Windows(np.concatenate(data), np.concatenate(activity), {"user": ids})


def _samples(source, name):
    """(n, 6): acceleration with gravity in m/s², rotation rate in rad/s."""
    names = header(source, name)[0]
    missing = [column for column in COLUMNS if column not in names]
    if missing:
        raise UserError(f"{source.label}: {name} lacks the column {missing[0]}; fetch the archive again")
    columns = read_csv(source, name, {column: (names.index(column), float) for column in COLUMNS})
    gravity, body, gyro = (np.stack([columns[c] for c in COLUMNS[i : i + 3]], axis=1) for i in (0, 3, 6))
    return np.concatenate([(gravity + body) * GRAVITY, gyro], axis=1)
