"""hhar: Heterogeneity Activity Recognition (9 users, eight phones in a waist pouch, 50 to 200 Hz), two huge CSV files.

Each sensor's rows are read block by block, reduced to averages over slots of 50 ms per user and device, and joined;
120 consecutive slots, each with both sensors and one and the same label, make a window. A slot in which the label
changes belongs to no window, and after it, a gap or a slot without one of the sensors the next window starts anew.

Creation_Time is a clock of each phone's sensor, which may begin anew; Arrival_Time, the phone's own, runs on. Rows that
arrive later after their creation than others, by more than they can be late, are of another session (`sessions`).
"""

import numpy as np

from bookkeeping.commands import UserError, warn
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
    "Arrival_Time": int,
    "Creation_Time": int,
    "x": float,
    "y": float,
    "z": float,
    "User": str,
    "Model": str,
    "Device": str,
    "gt": str,
}
SPAN = 1 << 38  # more slots than any clock in nanoseconds that fits 64 bits counts
LATE = 5000  # ms by which rows may be late; a clock that began anew is off by more, if a window was recorded before
OTHER_CLOCK = 86_400_000  # ms: clocks that differ by a day count from different moments, 1970 and the phone's start
SESSIONS = 1 << 9  # most sessions of a device


def convert(source, partial=False):
    """Windows sorted by user, model, device and time; columns model and user. `partial` accepts missing users."""
    files = {}
    for name, match in source.matching(FILE).items():
        files.setdefault(match[1], name)  # "Activity recognition exp" comes before "Still exp"
    missing = [sensor for sensor in SENSORS if sensor not in files]
    if missing:
        raise UserError(f"{source.label} lacks Phones_{missing[0]}.csv: both sensors' files are needed")
    devices = {}  # (user, model, device) -> number, shared by both sensors
    slots, clocks = [], {}  # clocks: device number -> its sessions, of both sensors
    for sensor in SENSORS:
        device, late, time, *rest = read_rows(source, files[sensor], devices)
        place = sessions(list(devices), device, late, time, clocks)
        del device, late
        slots.append(average_slots(place, time, *rest))
        del place, time, rest  # the raw rows of one sensor at a time
    users = {user for user, _, _ in devices}
    absent = [user for user in USERS if user not in users]
    if absent and not partial:
        raise UserError(
            f"{source.label} lacks user {absent[0]}: give the whole set, or --partial to take what is there"
        )
    if not devices:
        raise UserError(f"{source.label} has no rows of the models {', '.join(MODELS)}")
    for number, who in enumerate(devices):
        if (count := len(clocks[number])) > 1:
            warn(f"hhar, {' '.join(who)}: {count} sessions on its clock, told apart by Arrival_Time")
    return join(*slots, devices)


def read_rows(source, name, devices):
    """Rows of the usable models: device number, ms until arrival, creation in ns, xyz (n, 3), label's number.

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
        time = block["Creation_Time"][keep]
        late = block["Arrival_Time"][keep] - time // 1_000_000
        blocks.append((number, late, time, xyz, label[keep].astype(np.int8)))
    return [np.concatenate(part) for part in zip(*blocks, strict=True)]


def sessions(names, device, late, time, clocks):
    """place = device number * SESSIONS + session of rows (n,), whose `time` is changed to that of the session's clock.

    `clocks` collects a device's sessions: (ms late, first and last arrival). A sensor whose clock counts from another
    moment than that of the sensor that was read before is set by it, with a warning, if they were recorded at once.
    """
    if len(time) and time.min() < 0:
        raise UserError("Phones files: a Creation_Time before 1970; are the columns in the original order?")
    place, before = device.astype(np.int32) * SESSIONS, {number: list(there) for number, there in clocks.items()}
    for number in np.unique(device).tolist():
        rows, there = np.flatnonzero(device == number), clocks.setdefault(number, [])
        values = np.sort(late[rows])
        edges = values[1:][np.diff(values) > LATE]  # where a later session begins
        which = np.searchsorted(edges, late[rows], side="right")
        for one in range(len(edges) + 1):
            mine = rows[which == one]
            arrival = late[mine] + time[mine] // 1_000_000
            found = int(np.median(late[mine])), int(arrival.min()), int(arrival.max())
            parts = partners(*found, before.get(number, []))
            if not parts:
                parts = [(found[2], len(there), 0)]
                there.append(found)
            if any(shift for *_, shift in parts):
                warn(f"hhar, {' '.join(names[number])}: the clock of one sensor is set by Arrival_Time to the other's")
            part = np.searchsorted([end for end, *_ in parts[:-1]], arrival)  # what comes after the last is of the last
            place[mine] += np.array([session for _, session, _ in parts], np.int32)[part]
            time[mine] = np.maximum(time[mine] + np.array([shift for *_, shift in parts])[part] * 1_000_000, 0)
        if len(there) > SESSIONS:
            raise UserError(f"hhar, {' '.join(names[number])}: Arrival_Time has nothing to do with Creation_Time")
    return place


def partners(late, first, last, others):
    """The sessions among `others`, of the sensor read before, that were recorded at once with one of these times.

    Their (last arrival, number, ms that its clock is ahead of theirs) by time: that on the same clock, else those on
    clocks that count from another moment.
    """
    for number, (other, *_) in enumerate(others):
        if abs(late - other) <= LATE:
            return [(last, number, 0)]
    return sorted(
        (end, number, late - other)
        for number, (other, start, end) in enumerate(others)
        if abs(late - other) >= OTHER_CLOCK and first < end and start < last
    )


def average_slots(place, time, xyz, label):
    """Average the rows in slots of 50 ms: key (s,) ascending, mean xyz (s, 3), lowest and highest label (s,) each.

    key = place * SPAN + slot. Rows need not be in order; rows that agree in everything count once.
    """
    order = np.lexsort((time, place))
    place, time, xyz, label = place[order], time[order], xyz[order], label[order]
    # Equal rows stand next to each other only if all columns are sorted: do that among rows of one place and time.
    first, length = runs(place, time)
    tied = np.repeat(length > 1, length)
    if tied.any():
        rows = np.flatnonzero(tied)
        run = np.repeat(np.arange(len(length)), length)[rows]
        table = np.column_stack([run, label[rows], xyz[rows]])
        _, kept = np.unique(table, axis=0, return_index=True)
        keep = ~tied
        keep[rows[kept]] = True
        place, time, xyz, label = place[keep], time[keep], xyz[keep], label[keep]
    key = place.astype(np.int64) * SPAN + time // SLOT
    first, length = runs(key)
    if not len(first):
        return key, xyz, label, label
    mean = np.add.reduceat(xyz, first, axis=0) / length[:, None]
    return key[first], mean, np.minimum.reduceat(label, first), np.maximum.reduceat(label, first)


def tell_lost(ranked, found, devices, *slots):
    """Warn of each device without a window (`found`: places in `ranked` of the others), by the keys of the slots of
    the accelerometer, of the gyroscope and of both.
    """
    acc, gyro, both = ({place // SESSIONS for place in np.unique(keys // SPAN).tolist()} for keys in slots)
    for place, who in enumerate(ranked):
        if place not in found:
            number, why = devices[who], "no 6 s of both sensors without a gap under one label"
            if number not in both:
                why = "its accelerometer and gyroscope were never recorded at once, by their clocks"
            for sensor, there in zip(SENSORS, (acc, gyro), strict=True):
                why = why if number in there else f"it has no rows of its {sensor}"
            warn(f"hhar, {' '.join(who)}: no window is made of it: {why}")


def join(acc, gyro, devices):
    """Windows from both sensors' slots, each (key, mean, lowest label, highest label) of `average_slots`."""
    ranked = sorted(devices, key=lambda who: (who[0], MODELS.index(who[1]), who[2]))
    rank = np.zeros(len(devices), np.int64)
    for place, who in enumerate(ranked):
        rank[devices[who]] = place
    key, a, g = np.intersect1d(acc[0], gyro[0], assume_unique=True, return_indices=True)
    both = key
    low, high = np.minimum(acc[2][a], gyro[2][g]), np.maximum(acc[3][a], gyro[3][g])
    single = (low == high) & (low < len(ACTIVITIES))  # one label in the whole slot, and not null
    key, label, a, g = key[single], low[single], a[single], g[single]
    place = key // SPAN
    key = (rank[place // SESSIONS] * SESSIONS + place % SESSIONS) * SPAN + key % SPAN
    order = np.argsort(key)
    key, label, a, g = key[order], label[order], a[order], g[order]
    # key - row is constant as long as slots follow one another without a gap on one device
    first, length = runs(key - np.arange(len(key)), label)
    starts, _ = window_starts(first, length, STEPS)
    rows = starts[:, None] + np.arange(STEPS)  # (W, 120)
    data = np.concatenate([acc[1][a[rows]], gyro[1][g[rows]]], axis=2).astype(np.float32)
    place = key[starts] // SPAN // SESSIONS
    tell_lost(ranked, set(place.tolist()), devices, acc[0], gyro[0], both)
    model = np.array([MODELS.index(who[1]) for who in ranked])[place]
    user = np.array([USERS.index(who[0]) for who in ranked])[place]
    names = np.array(list(ACTIVITIES.values()))
    columns = {"model": (model, list(MODELS)), "user": (user, list(USERS))}
    return Windows(data, names[label[starts]], columns)
