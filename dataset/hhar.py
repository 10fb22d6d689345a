"""hhar: Heterogeneity Activity Recognition (9 users, eight phones in a waist pouch, 50 to 200 Hz), two huge CSV files.

Each sensor's rows are read block by block, reduced to averages over slots of 50 ms per user and device, and joined;
120 consecutive slots, each with both sensors and one and the same label, make a window. A slot in which the label
changes belongs to no window, and after it, a gap or a slot without one of the sensors the next window starts anew.
"""

import numpy as np

from bookkeeping.commands import UserError
from dataset.tables import csv_blocks, header
from dataset.windows import STEPS, Windows, runs, window_starts

EXPECTED = 7968
SLOT = 50_000_000  # ns: 20 Hz
USERS = "abcdefghi"
MODELS = ("nexus4", "s3", "s3mini")
UNUSABLE = ("samsungold",)  # its gyroscope has no usable rows
ACTIVITIES = {
    "walk": "walking",
    "stairsup": "upstairs",
    "stairsdown": "downstairs",
    "sit": "sitting",
    "stand": "standing",
    "bike": "biking",
}
LABELS = (*ACTIVITIES, "null")
SENSORS = ("accelerometer", "gyroscope")
FILE = r"(?:.*/)?Phones_(accelerometer|gyroscope)\.csv"
COLUMNS = {
    "Creation_Time": int,
    "x": float,
    "y": float,
    "z": float,
    "User": str,
    "Model": str,
    "Device": str,
    "gt": str,
}
SPAN = 1 << 40  # more slots than any clock in nanoseconds that fits 64 bits counts


def convert(source, partial=False):
    """Windows sorted by user, model, device and time; columns model and user. `partial` accepts missing users."""
    files = {}
    for name, match in source.matching(FILE).items():
        files.setdefault(match[1], name)  # "Activity recognition exp" comes before "Still exp"
    missing = [sensor for sensor in SENSORS if sensor not in files]
    if missing:
        raise UserError(f"{source.label} lacks Phones_{missing[0]}.csv: both sensors' files are needed")
    devices = {}  # (user, model, device) -> number, shared by both sensors
    slots = []
    for sensor in SENSORS:
        rows = read_rows(source, files[sensor], devices)
        slots.append(average_slots(*rows))
        del rows  # the raw rows of one sensor at a time
    users = {user for user, _, _ in devices}
    absent = [user for user in USERS if user not in users]
    if absent and not partial:
        raise UserError(
            f"{source.label} lacks user {absent[0]}: give the whole set, or --partial to take what is there"
        )
    if not devices:
        raise UserError(f"{source.label} has no rows of the models {', '.join(MODELS)}")
    return join(*slots, devices)


def read_rows(source, name, devices):
    """Rows of the usable models: device number (n,), creation time in ns (n,), xyz (n, 3), label's number (n,).

    `devices` collects the numbers of (user, model, device). Raises UserError for an unknown user, model or activity.
    """
    names = header(source, name)[0]
    absent = [column for column in COLUMNS if column not in names]
    if absent:
        raise UserError(f"{source.label}: {name} lacks the column {absent[0]}; is it the original file?")
    where = f"{source.label}: {name}"
    blocks = []
    for block in csv_blocks(source, name, {key: (names.index(key), kind) for key, kind in COLUMNS.items()}):
        codes = []
        for column, known in (("User", USERS), ("Model", MODELS + UNUSABLE), ("gt", LABELS)):
            found, code = block[column]
            for value in found:
                if value not in known and not (column == "gt" and value == ""):  # an empty label is none
                    raise UserError(f"{where}: {column} {value!r} is none of {', '.join(known)}")
            codes.append(np.array([known.index(value or "null") for value in found])[code])
        user, model, label = codes
        device_names, device = block["Device"]
        keep = model < len(MODELS)
        key = ((user * len(MODELS) + model) * len(device_names) + device)[keep]
        present, inverse = np.unique(key, return_inverse=True)
        numbers = []
        for value in present.tolist():
            rest, d = divmod(value, len(device_names))
            who = (USERS[rest // len(MODELS)], MODELS[rest % len(MODELS)], device_names[d])
            numbers.append(devices.setdefault(who, len(devices)))
        xyz = np.stack([block[axis][keep] for axis in "xyz"], axis=1)
        number = np.array(numbers, np.int16)[inverse]
        blocks.append((number, block["Creation_Time"][keep], xyz, label[keep].astype(np.int8)))
    return [np.concatenate(part) for part in zip(*blocks, strict=True)]


def average_slots(device, time, xyz, label):
    """Average the rows in slots of 50 ms: key (s,) ascending, mean xyz (s, 3), lowest and highest label (s,) each.

    key = device * SPAN + slot. Rows need not be in order; rows that agree in everything count once.
    """
    order = np.lexsort((time, device))
    device, time, xyz, label = device[order], time[order], xyz[order], label[order]
    if len(time) and time.min() < 0:
        raise UserError("Phones files: a Creation_Time before 1970; are the columns in the original order?")
    # Equal rows stand next to each other only if all columns are sorted: do that among rows of one device and time.
    first, length = runs(device, time)
    tied = np.repeat(length > 1, length)
    if tied.any():
        rows = np.flatnonzero(tied)
        run = np.repeat(np.arange(len(length)), length)[rows]
        table = np.column_stack([run, label[rows], xyz[rows]])
        _, kept = np.unique(table, axis=0, return_index=True)
        keep = ~tied
        keep[rows[kept]] = True
        device, time, xyz, label = device[keep], time[keep], xyz[keep], label[keep]
    key = device.astype(np.int64) * SPAN + time // SLOT
    first, length = runs(key)
    if not len(first):
        return key, xyz, label, label
    mean = np.add.reduceat(xyz, first, axis=0) / length[:, None]
    return key[first], mean, np.minimum.reduceat(label, first), np.maximum.reduceat(label, first)


def join(acc, gyro, devices):
    """Windows from both sensors' slots, each (key, mean, lowest label, highest label) of `average_slots`."""
    ranked = sorted(devices, key=lambda who: (who[0], MODELS.index(who[1]), who[2]))
    rank = np.zeros(len(devices), np.int64)
    for place, who in enumerate(ranked):
        rank[devices[who]] = place
    key, a, g = np.intersect1d(acc[0], gyro[0], assume_unique=True, return_indices=True)
    low, high = np.minimum(acc[2][a], gyro[2][g]), np.maximum(acc[3][a], gyro[3][g])
    single = (low == high) & (low < len(ACTIVITIES))  # one label in the whole slot, and not null
    key, label, a, g = key[single], low[single], a[single], g[single]
    key = rank[key // SPAN] * SPAN + key % SPAN
    order = np.argsort(key)
    key, label, a, g = key[order], label[order], a[order], g[order]
    # key - row is constant as long as slots follow one another without a gap on one device
    first, length = runs(key - np.arange(len(key)), label)
    starts, _ = window_starts(first, length, STEPS)
    rows = starts[:, None] + np.arange(STEPS)  # (W, 120)
    data = np.concatenate([acc[1][a[rows]], gyro[1][g[rows]]], axis=2).astype(np.float32)
    place = key[starts] // SPAN
    model = np.array([MODELS.index(who[1]) for who in ranked])[place]
    user = np.array([USERS.index(who[0]) for who in ranked])[place]
    names = np.array(list(ACTIVITIES.values()))
    columns = {"model": (model, list(MODELS)), "user": (user, list(USERS))}
    return Windows(data, names[label[starts]], columns)
