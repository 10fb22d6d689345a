"""From recordings to windows: the rules that all data sets share.

Axes: n samples of one recording, W or N windows, T = 120 steps at 20 Hz, 6 channels (acc xyz in m/s² with gravity,
gyro xyz in rad/s), K label columns. No window spans two recordings, two labels or a gap; windows don't overlap.
"""

from dataclasses import dataclass, field

import numpy as np

from bookkeeping.commands import UserError

RATE = 20  # Hz
STEPS = 120  # 6 s
VERSION = f"{RATE}_{STEPS}"
GRAVITY = 9.80665  # m/s² in one g, exact by definition
CLASSES = ("walking", "upstairs", "downstairs", "sitting&standing")
MERGED = {"sitting": "sitting&standing", "standing": "sitting&standing"}
SAMPLES_50 = STEPS * 50 // RATE  # samples of a 50 Hz recording in one window


@dataclass
class Windows:
    """Windows of one data set, in the order in which they are stored.

    data (N, 120, 6) float32, the rotation rate of whole windows NaN where there was no gyroscope; activity (N,) names,
    all "" in a set without labels; columns: further label columns in order, name -> (ids (N,), names).
    """

    data: np.ndarray
    activity: np.ndarray
    columns: dict = field(default_factory=dict)

    def take(self, rows):
        """The windows chosen by an index or mask, in that order."""
        columns = {name: (ids[rows], names) for name, (ids, names) in self.columns.items()}
        return Windows(self.data[rows], self.activity[rows], columns)


def runs(*keys):
    """Runs of rows that agree in every key: (first row, length), both (R,) int64. keys are (n,) arrays."""
    n = len(keys[0])
    if n == 0:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    change = np.zeros(n - 1, bool)
    for key in keys:
        change |= key[1:] != key[:-1]
    first = np.concatenate([[0], np.flatnonzero(change) + 1])
    return first, np.diff(np.append(first, n))


def window_starts(first, length, size):
    """Non-overlapping windows of `size` rows in runs that start at `first` with `length` rows.

    Returns (start row, number of the run) of every window, (W,) each; what is left over at a run's end is dropped.
    """
    first, count = np.asarray(first, np.int64), np.maximum(np.asarray(length, np.int64), 0) // size
    run = np.repeat(np.arange(len(count)), count)
    within = np.arange(len(run)) - (np.cumsum(count) - count)[run]
    return first[run] + size * within, run


def pool_50_hz(samples, starts):
    """Windows from a 50 Hz recording (n, C): 300 samples from each start become 120 steps, (W, 120, C) float32.

    Five samples become two steps, the mean of the first 2 and the mean of the next 3.
    """
    raw = samples[np.asarray(starts)[:, None] + np.arange(SAMPLES_50)]  # (W, 300, C)
    raw = raw.reshape(len(raw), SAMPLES_50 // 5, 5, samples.shape[1])  # (W, 60, 5, C)
    pooled = np.stack([raw[:, :, :2].mean(2), raw[:, :, 2:].mean(2)], axis=2)  # (W, 60, 2, C)
    return pooled.reshape(len(raw), STEPS, samples.shape[1]).astype(np.float32)


def four_classes(windows):
    """The windows of the paper's four classes: sitting and standing merged, other activities dropped.

    Returns (windows, {dropped activity: count}); activity names are those of CLASSES then.
    """
    names, inverse = np.unique(windows.activity, return_inverse=True)
    merged = np.array([MERGED.get(name, name) for name in names.tolist()], dtype="<U32")
    keep = np.isin(merged, CLASSES)
    counts = np.bincount(inverse, minlength=len(names))
    dropped = {str(name): int(count) for name, count, kept in zip(names, counts, keep, strict=True) if not kept}
    windows.activity = merged[inverse]
    return windows.take(keep[inverse]), dropped


def label_array(windows, classes=CLASSES):
    """Label columns (N, 120, K) int16: the activity's id in `classes` (-1: no labels), then the further columns."""
    names, inverse = np.unique(windows.activity, return_inverse=True)
    table = {"": -1} if names.tolist() == [""] else {name: i for i, name in enumerate(classes)}
    unknown = [name for name in names.tolist() if name not in table]
    if unknown:
        raise UserError(f"activity {unknown[0]!r} is none of {', '.join(classes)}; map it to one of them, or to null")
    activity = np.array([table[name] for name in names.tolist()], np.int16)[inverse]
    columns = np.stack([activity, *(ids.astype(np.int16) for ids, _ in windows.columns.values())], axis=1)  # (N, K)
    return np.repeat(columns[:, None], windows.data.shape[1], axis=1)


def config_entry(windows, classes=CLASSES):
    """A set's entry: what each label column is, its number of ids and their names, whether it has a gyroscope."""
    entry = {"sr": RATE, "seq_len": STEPS, "dimension": windows.data.shape[2]}
    columns = {"activity": classes} | {name: names for name, (_, names) in windows.columns.items()}
    for index, (name, names) in enumerate(columns.items()):
        entry[f"{name}_label_index"] = index
        entry[f"{name}_label_size"] = len(names)
        entry[f"{name}_label"] = list(names)
    whole = not np.isnan(windows.data[..., 3:]).all((1, 2)).any()
    return entry | ({} if whole else {"gyroscope": False}) | {"size": len(windows.data)}
