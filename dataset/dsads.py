"""dsads: Daily and Sports Activities (8 people, sensors at five body positions at once, 25 Hz), as distributed."""

import numpy as np

from bookkeeping.commands import UserError
from dataset.tables import read_table
from dataset.windows import RATE, STEPS, Windows, runs, window_starts

EXPECTED = 8845
PEOPLE, SEGMENTS, ROWS = 8, 60, 125  # segments of 5 s of each activity and person
RAW_RATE = 25  # Hz
POSITIONS = ("torso", "right_arm", "left_arm", "right_leg", "left_leg")
ACTIVITIES = {1: "sitting", 2: "standing", 5: "upstairs", 6: "downstairs", 9: "walking"}
FILE = r"(?:.*/)?a(\d\d)/p(\d)/s(\d\d)\.txt"
SENSORS = np.arange(45).reshape(5, 9)[:, :6]  # each position's acc xyz (m/s², with gravity), gyro xyz (rad/s)
JUMP = 99.5  # percentile of the steps within segments that a jump to the next recording exceeds


def convert(source, partial=False):
    """Windows by activity, person and position; columns position and user. `partial` accepts missing files.

    Segments that follow on from each other are one recording. Raises UserError for missing or malformed files.
    """
    files = {tuple(map(int, match.groups())): name for name, match in source.matching(FILE).items()}
    wanted = [(a, p, s) for a in ACTIVITIES for p in range(1, PEOPLE + 1) for s in range(1, SEGMENTS + 1)]
    missing = [key for key in wanted if key not in files]
    if missing and not partial:
        first = "a{:02d}/p{}/s{:02d}.txt".format(*missing[0])
        raise UserError(
            f"{source.label} lacks {first} and {len(missing) - 1} more of {len(wanted)} files: "
            "give the whole set, or --partial to take what is there"
        )
    data, activity, position, user = [], [], [], []
    for number, name in ACTIVITIES.items():
        for person in range(1, PEOPLE + 1):
            mine = [files[key] for key in wanted if key[:2] == (number, person) and key in files]
            windows = _windows([_rows(source, file) for file in mine]) if mine else np.zeros((0, STEPS, 45))
            for place, columns in enumerate(SENSORS):
                data.append(windows[..., columns].astype(np.float32))
                activity += [name] * len(windows)
                position += [place] * len(windows)
                user += [person - 1] * len(windows)
    columns = {"position": (np.array(position, np.int64), list(POSITIONS))}
    columns["user"] = (np.array(user, np.int64), [str(i + 1) for i in range(PEOPLE)])
    return Windows(np.concatenate(data), np.array(activity, dtype="<U10"), columns)


def _rows(source, name):
    """A segment: (125, 45) float64. Raises UserError for a file of another shape."""
    rows = read_table(source, name, 45, separator=",")
    if rows.shape != (ROWS, 45):
        raise UserError(f"{source.label}: {name} has {len(rows)} rows, not {ROWS}; fetch the archive again")
    return rows


def _windows(segments):
    """Windows (W, 120, 45) at 20 Hz of one person's segments of one activity, in their order.

    A new recording begins where the step from one segment to the next is larger than all but 0.5 % of the steps within
    segments (the sum over the acceleration's columns). Rows of zeros, with which some segments end, are no samples.
    """
    acc = SENSORS[:, :3].ravel()
    within = np.concatenate([np.abs(np.diff(part[:, acc], axis=0)).sum(1) for part in segments])
    rows = np.concatenate(segments)
    step = np.abs(np.diff(rows[:, acc], axis=0)).sum(1)
    border = np.zeros(len(step), bool)
    border[ROWS - 1 :: ROWS] = True
    begins = np.concatenate([[0], np.cumsum(border & (step > np.percentile(within, JUMP)))])
    real = rows.any(axis=1)
    found = []
    for first, length in zip(*runs(begins, real), strict=True):
        if real[first]:
            found.append(_resampled(rows[first : first + length]))
    return np.concatenate(found)


def _resampled(rows):
    """The windows (W, 120, C) of rows (n, C) that follow on from each other: 25 to 20 Hz, linearly."""
    at = np.arange(int((len(rows) - 1) * RATE / RAW_RATE) + 1) * RAW_RATE / RATE
    low = np.minimum(at.astype(np.int64), len(rows) - 2)
    share = (at - low)[:, None]
    samples = rows[low] * (1 - share) + rows[low + 1] * share
    starts, _ = window_starts([0], [len(samples)], STEPS)
    return samples[starts[:, None] + np.arange(STEPS)]
