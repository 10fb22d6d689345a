"""shoaib: Sensors Activity Dataset (10 participants, phones at five positions at once, 50 Hz), as distributed."""

import numpy as np

from bookkeeping.commands import UserError
from dataset.tables import header, read_csv
from dataset.windows import SAMPLES_50, Windows, pool_50_hz, runs, window_starts

PARTICIPANTS = 10
EXPECTED = 7500
POSITIONS = ("left_pocket", "right_pocket", "wrist", "upper_arm", "belt")
ACTIVITIES = ("walking", "sitting", "standing", "jogging", "biking", "upstairs", "downstairs")
MISSPELT = {"upsatirs": "upstairs"}  # some rows of the files themselves
FILE = r"(?:.*/)?Participant_(\d+)\.csv"
WIDTH = 14  # columns per position: time, acc with gravity, acc without, gyro, magnetic field, an empty one
SENSORS = {"Ax": 1, "Ay": 2, "Az": 3, "Gx": 7, "Gy": 8, "Gz": 9}  # m/s² with gravity, rad/s
HEADER_LINES = 2


def convert(source, partial=False):
    """Windows by participant, position and time; columns position and user. `partial` accepts missing participants."""
    files = {int(match[1]): name for name, match in source.matching(FILE).items()}
    missing = [number for number in range(1, PARTICIPANTS + 1) if number not in files]
    if missing and not partial:
        raise UserError(
            f"{source.label} lacks Participant_{missing[0]}.csv: give the whole set, or --partial to take what is there"
        )
    data, activity, position, user = [], [], [], []
    for number, name in sorted(files.items()):
        if not 1 <= number <= PARTICIPANTS:
            raise UserError(f"{source.label}: {name}: participants are numbered 1 to {PARTICIPANTS}")
        samples, kinds = _samples(source, name)
        first, length = runs(kinds)
        starts, run = window_starts(first, length, SAMPLES_50)
        pooled = pool_50_hz(samples, starts)  # (W, 120, 30)
        by_position = pooled.reshape(*pooled.shape[:2], len(POSITIONS), 6).transpose(2, 0, 1, 3)  # (5, W, 120, 6)
        data.append(by_position.reshape(-1, *pooled.shape[1:2], 6))
        activity.append(np.tile(np.array(ACTIVITIES)[kinds[first[run]]], len(POSITIONS)))
        position.append(np.repeat(np.arange(len(POSITIONS)), len(starts)))
        user.append(np.full(len(POSITIONS) * len(starts), number - 1))
    columns = {
        "position": (np.concatenate(position), list(POSITIONS)),
        "user": (np.concatenate(user), [str(i + 1) for i in range(PARTICIPANTS)]),
    }
    return Windows(np.concatenate(data), np.concatenate(activity), columns)


def _samples(source, name):
    """One participant's rows: (n, 30), six channels for each position in order, and the activity's number (n,)."""
    where = f"{source.label}: {name}"
    names = header(source, name, lines=HEADER_LINES)[1]
    # The activity stands in the last column: after the last position's empty one, or in its place.
    if len(names) not in (WIDTH * len(POSITIONS), WIDTH * len(POSITIONS) + 1):
        raise UserError(f"{where} has {len(names)} columns, not {WIDTH} for each of {len(POSITIONS)} positions and one")
    types = {}
    for place, position in enumerate(POSITIONS):
        for sensor, offset in SENSORS.items():
            column = place * WIDTH + offset
            if names[column].casefold() != sensor.casefold():
                raise UserError(f"{where}: column {column + 1} is {names[column]!r}, not {position}'s {sensor}")
            types[f"{position} {sensor}"] = (column, float)
    table = read_csv(source, name, types | {"activity": (len(names) - 1, str)}, skip=HEADER_LINES)
    text, place = table.pop("activity")
    spelt = [MISSPELT.get(value.strip().casefold(), value.strip().casefold()) for value in text]
    for value, kind in zip(text, spelt, strict=True):
        if kind not in ACTIVITIES:
            raise UserError(f"{where}: activity {value!r} is none of {', '.join(ACTIVITIES)}")
    return np.stack(list(table.values()), axis=1), np.array([ACTIVITIES.index(kind) for kind in spelt])[place]
