"""Looking at a prepared data set: is it what its entry says, are its units plausible, how many windows of what.

Everything is computed in pieces, so that a data set larger than memory can be checked.
"""

from dataclasses import dataclass, field

import numpy as np

from bookkeeping.commands import UserError
from bookkeeping.configs import label_names
from dataset import motion
from dataset.store import paths
from dataset.windows import GRAVITY, VERSION
from utils import load_windows, unlabelled, window_labels

BLOCK = 4096  # windows at a time
CHANNELS = ("acc x", "acc y", "acc z", "gyro x", "gyro y", "gyro z")
STILL = 0.04  # |acc| varies by less than this share of its median: the device lies or is worn at rest
TOLERANCE = 0.15  # share by which gravity may be off in one user's or position's still windows
CONSTANT = 0.01  # share of windows in which a channel may stand still (a short drop-out of the sensor)
CLIPPED = 0.002  # share of a channel's values that may sit exactly at its largest or smallest value
KNOWN_COPIES = {"motion": motion.COPIES}
GYRO_HIGH, GYRO_LOW = 20.0, 0.01  # rad/s: a body's 99th percentile is below, its median while moving above
# rad/s, of the median in still windows: in uci, motion, dsads and uschad 0.02 to 0.04, a user's 0.07 at most
GYRO_REST = 0.5
FEW = 5  # still windows that say anything about a sensor


@dataclass
class Report:
    """What --check prints: lines of a table, problems (exit status 2) and notes."""

    title: str
    lines: list = field(default_factory=list)
    problems: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    def text(self):
        """The whole report as text."""
        lines = [
            self.title,
            *self.lines,
            *(f"note: {n}" for n in self.notes),
            *(f"problem: {p}" for p in self.problems),
        ]
        return "\n".join(lines + ([] if self.problems else ["no problems found"]))


def check(name, version=VERSION):
    """The Report on data set `name`. Raises UserError where the files are missing, not of one preparation, or so
    malformed that nothing else can be said."""
    data_path, label_path, _ = paths(name, version)
    data, labels, config = load_windows(name, version, look=True)
    report = Report(f"{data_path}: {len(data)} windows of {data.shape[1]} steps, {data.dtype}")
    if config.get("simulated"):
        report.title = f"SIMULATED data. {report.title}"
    if config.get("size") != len(data):
        report.problems.append(f"{len(data)} windows, but the set's entry says size {config.get('size')}")
    columns = _label_columns(report, labels, config, str(label_path))
    stats = _statistics(data)
    _check_values(report, stats)
    _check_units(report, stats, columns)
    _check_copies(report, data, stats, KNOWN_COPIES.get(name, 0))
    for column, (ids, names) in columns.items():
        report.lines += _counts(column, ids, names, stats)
    return report


def _label_columns(report, labels, config, where):
    """{column: (id of each window (N,), names)} of the columns described, problems noted."""
    columns = {}
    known = [key for key in config if key.endswith("_label_index")]
    for key in sorted(known, key=lambda key: config[key]):
        if config[key] < 0:
            continue
        if key == "activity_label_index" and unlabelled(labels, config):
            report.notes.append("no labels (-1): for pretrain.py and predict.py alone")
            continue
        try:
            column, names = label_names(config, config[key])
            ids = window_labels(labels, config[key], names, where)
        except UserError as error:
            report.problems.append(str(error))
            continue
        if (ids < 0).any():
            report.problems.append(f"{(ids < 0).sum()} windows whose {column} label changes within the window")
        columns[column] = ids, names
    if labels.shape[2] != len(known):
        report.problems.append(f"{where} has {labels.shape[2]} label columns, the set's entry describes {len(known)}")
    return columns


def _statistics(data):
    """Figures on every window, computed in pieces, and per channel the extremes and how many values sit at them.

    Per window: constant channels (N, 6); median and standard deviation of |acc|, |mean acc|, median and maximum of
    |gyro| (NaN without gyroscope), a hash of the values, and whether it is still, (N,) each.
    """
    n, channels = len(data), data.shape[2]
    low = np.full(channels, np.inf)
    high = np.full(channels, -np.inf)
    at_low, at_high = np.zeros(channels, np.int64), np.zeros(channels, np.int64)
    stats = {"constant": np.zeros((n, channels), bool), "values": n * data.shape[1]}
    stats |= {key: np.zeros(n) for key in ("acc", "spread", "gravity", "gyro", "gyro_high")}
    stats["hash"] = np.zeros(n, np.uint64)
    factors = np.random.default_rng(0).integers(1, 2**63, 2 * data[0].size, dtype=np.uint64) * 2 + 1
    for start in range(0, n, BLOCK):
        rows = slice(start, start + BLOCK)
        block = np.asarray(data[rows], np.float64)  # (B, T, 6)
        words = np.ascontiguousarray(data[rows]).view(np.uint32).reshape(len(block), -1)
        stats["hash"][rows] = words @ factors[: words.shape[1]]  # modulo 2^64
        stats["constant"][rows] = (block == block[:, :1]).all(1)
        length, turn = (np.linalg.norm(block[..., part], axis=-1) for part in (slice(0, 3), slice(3, 6)))  # (B, T)
        stats["acc"][rows] = np.median(length, axis=1)
        stats["spread"][rows] = length.std(1)
        stats["gravity"][rows] = np.linalg.norm(block[..., :3].mean(1), axis=-1)
        stats["gyro"][rows] = np.median(turn, axis=1)
        stats["gyro_high"][rows] = turn.max(1)
        for extreme, count, better in ((low, at_low, np.fmin), (high, at_high, np.fmax)):
            new = better(extreme, better.reduce(block, axis=(0, 1)))
            count[new != extreme] = 0
            extreme[:] = new
            count += (block == extreme).sum((0, 1))
    stats["still"] = stats["spread"] < STILL * np.maximum(stats["acc"], 1e-12)
    stats["seen"] = ~np.isnan(stats["gyro"])  # by a gyroscope
    return stats | {"low": low, "high": high, "at_low": at_low, "at_high": at_high}


def _check_values(report, stats):
    report.lines.append(f"{'channel':<14}{'lowest':>10}{'highest':>10}{'constant windows':>18}")
    constant = stats["constant"].sum(0)
    for i, channel in enumerate(CHANNELS):
        low, high = stats["low"][i], stats["high"][i]
        if low > high:
            report.lines.append(f"{channel:<14}{'none':>10}{'none':>10}")
            continue
        report.lines.append(f"{channel:<14}{low:>10.2f}{high:>10.2f}{constant[i]:>18}")
        share = constant[i] / len(stats["acc"])
        trouble = f"{channel} does not change at all in {constant[i]} windows ({share:.1%})"
        if share > CONSTANT:
            report.problems.append(f"{trouble}: did the sensor stop?")
        elif constant[i]:
            report.notes.append(trouble)
        for at, value in ((stats["at_low"][i], low), (stats["at_high"][i], high)):
            if at > max(20, CLIPPED * stats["values"]) and low < high and share <= CONSTANT:
                report.problems.append(f"{channel} is clipped: {at} values are exactly {value:g}, its extreme")


def _check_units(report, stats, columns):
    """Gravity's length and the rotation rate in still windows, over all and per user, position or model."""
    still = stats["still"]
    rows = still if still.any() else np.ones(len(still), bool)
    acc = float(np.median(stats["acc"][rows]))
    share = f"{still.mean():.0%} still windows" if still.any() else "no window is still; all are taken"
    report.lines.append(f"median |acc| {acc:.2f} m/s² ({share}), gravity {np.median(stats['gravity'][rows]):.2f} m/s²")
    if abs(acc / GRAVITY - 1) > TOLERANCE:
        guess = "is it without gravity?"
        if abs(acc - 1) < TOLERANCE:
            guess = "is it in g? then multiply by 9.80665"
        elif abs(acc / GRAVITY**2 - 1) < TOLERANCE:
            guess = "was it multiplied by 9.80665 twice?"
        report.problems.append(f"median |acc| is {acc:.2f}, not near {GRAVITY:.1f} m/s²: {guess}")
    else:
        for place, rows in _groups(columns, still):
            acc = float(np.median(stats["acc"][rows]))
            if abs(acc / GRAVITY - 1) > TOLERANCE:
                report.problems.append(f"{place}: median |acc| of still windows is {acc:.2f} m/s², not 9.8")
    _check_gyroscope(report, stats, columns)


def _check_gyroscope(report, stats, columns):
    seen, still = stats["seen"], stats["seen"] & stats["still"]
    if not seen.all():
        report.notes.append(f"no gyroscope in {(~seen).sum()} of {len(seen)} windows: for -mv v2 alone")
    if not seen.any():
        return
    gyro, calm = (float(np.median(stats["gyro"][rows])) for rows in (seen, still if still.any() else seen))
    high = float(np.quantile(stats["gyro_high"][seen], 0.99))
    report.lines.append(f"median |gyro| {gyro:.3f} rad/s, {calm:.3f} in those, 99 % of windows stay under {high:.1f}")
    if high > GYRO_HIGH:
        report.problems.append(f"|gyro| reaches {high:.0f} in every hundredth window: is it in deg/s, not rad/s?")
    moving = seen & ~stats["still"]
    if gyro < GYRO_LOW and moving.any() and np.median(stats["gyro"][moving]) < GYRO_LOW:
        report.problems.append(
            f"median |gyro| is {gyro:.4f} rad/s while moving: was deg/s converted twice, or is it off?"
        )
    found = [("the set", still)] if still.sum() >= FEW and calm > GYRO_REST else _groups(columns, still)
    for place, rows in found:
        if (calm := float(np.median(stats["gyro"][rows]))) > GYRO_REST:
            guess = "is it in deg/s, or another sensor's?"
            if min(abs(calm / GRAVITY - 1), abs(calm - 1)) < TOLERANCE:
                guess = "it looks like an acceleration"
            report.problems.append(
                f"{place}: median |gyro| of still windows is {calm:.2f}, at rest it is near 0: {guess}"
            )


def _groups(columns, rows):
    """(what they are called, which (N,)) of each user's, position's or model's windows among `rows`, if not few."""
    for column, (ids, names) in columns.items():
        for i, name in enumerate(names):
            if column != "activity" and (chosen := (ids == i) & rows).sum() >= FEW:
                yield f"{column} {name}", chosen


def _check_copies(report, data, stats, known):
    """Windows that agree in every value: equal hashes, then compared value by value."""
    order = np.argsort(stats["hash"], kind="stable")
    same = np.flatnonzero(np.diff(stats["hash"][order]) == 0)
    first, second = order[same], order[same + 1]
    equal = np.zeros(len(first), bool)
    for start in range(0, len(first), BLOCK):
        rows = slice(start, start + BLOCK)
        one, other = (np.ascontiguousarray(data[which[rows]]).view(np.uint32) for which in (first, second))
        equal[rows] = (one == other).all((1, 2))  # by their bits: a missing gyroscope's NaN is no number's equal
    if equal.any():
        some = ", ".join(f"{b} = {a}" for a, b in zip(first[equal][:3], second[equal][:3], strict=True))
        trouble = f"{equal.sum()} windows are exact copies of others (windows {some} ...)"
        if equal.sum() <= known:
            report.notes.append(f"{trouble}, as in the published recordings")
        else:
            report.problems.append(f"{trouble}: is a recording there twice?")


def _counts(column, ids, names, stats):
    """A table of windows per id, with its share, the share that is still, and median |gyro|."""
    lines = [f"{column:<24}{'windows':>9}{'share':>8}{'still':>8}{'|gyro|':>9}"]
    for i, name in enumerate(names):
        rows = ids == i
        if rows.any():
            still, gyro = stats["still"][rows].mean(), stats["gyro"][rows & stats["seen"]]
            turn = f"{np.median(gyro):.3f}" if len(gyro) else "none"
            lines.append(f"  {name:<22}{rows.sum():>9}{rows.mean():>8.1%}{still:>8.0%}{turn:>9}")
    empty = [name for i, name in enumerate(names) if not (ids == i).any()]
    if empty:
        lines.append(f"  (none of: {', '.join(empty)})")
    return lines
