"""A picture of a prepared data set: one typical window per activity, and how many windows there are of each."""

import io

import numpy as np

from bookkeeping.artefacts import atomic
from bookkeeping.commands import UserError
from bookkeeping.configs import data_path, label_names
from dataset.windows import RATE, VERSION
from utils import load_windows, unlabelled, window_labels

AXES = {"x": "tab:blue", "y": "tab:orange", "z": "tab:green"}
SENSORS = (("acceleration (m/s²)", slice(0, 3)), ("rotation rate (rad/s)", slice(3, 6)))


def typical_windows(data, ids, classes):
    """For each class the row of the window whose motion is nearest to the class's median, None without windows."""
    rows = []
    for kind in range(classes):
        members = np.flatnonzero(ids == kind)
        if not len(members):
            rows.append(None)
            continue
        members = members[:: max(1, len(members) // 2000)]  # enough to find a typical one
        spread = np.asarray(data[members], np.float64).std(1)
        level = np.log(np.where(np.isnan(spread), 0, spread).mean(1) + 1e-9)  # NaN: no gyroscope
        rows.append(int(members[np.abs(level - np.median(level)).argmin()]))
    return rows


def figure(name, path, version=VERSION):
    """Draw data set `name` into the PNG file `path`. Raises UserError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    if not str(path).lower().endswith(".png"):
        raise UserError(f"--figure {path}: give a file name that ends with .png")
    data, labels, config = load_windows(name, version, look=True)
    index, where = config["activity_label_index"], data_path(name, version, "label")
    if unlabelled(labels, config):
        names, ids = ["no label"], np.zeros(len(data), np.int64)
    else:
        names = label_names(config, index)[1]
        ids = window_labels(labels, index, names, where)
    rows = typical_windows(data, ids, len(names))
    height = 1.9 * len(names) + 0.5 * len(names) + 1.6
    canvas = pyplot.figure(figsize=(10, height), layout="constrained")
    grid = canvas.add_gridspec(len(names) + 1, 2, height_ratios=[1.9] * len(names) + [0.5 * len(names) + 0.6])
    simulated = "SIMULATED " if config.get("simulated") else ""
    canvas.suptitle(f"{simulated}data set {name}: {len(data)} windows of {data.shape[1] / RATE:g} s at {RATE} Hz")
    seconds = np.arange(data.shape[1]) / RATE
    for column, (unit, part) in enumerate(SENSORS):
        shown = [np.asarray(data[row])[:, part] for row in rows if row is not None]
        shown = [values for values in shown if not np.isnan(values).any()] or [np.zeros(1)]
        low, high = min(map(np.min, shown)), max(map(np.max, shown))
        margin = 0.06 * (high - low + 1e-9)
        for kind, row in enumerate(rows):
            axes = canvas.add_subplot(grid[kind, column])
            if row is None:
                axes.text(0.5, 0.5, "no windows", ha="center", va="center", transform=axes.transAxes)
            else:
                for (axis, colour), values in zip(AXES.items(), np.asarray(data[row])[:, part].T, strict=True):
                    axes.plot(seconds, values, color=colour, label=axis, linewidth=1.2)
            axes.set(xlim=(0, data.shape[1] / RATE), ylim=(low - margin, high + margin), ylabel=unit)
            axes.set_title(f"{names[kind]}" + ("" if row is None else f" (window {row})"), fontsize=10)
            axes.grid(alpha=0.3)
            if kind == len(names) - 1:
                axes.set_xlabel("time (s)")
            if kind == 0:
                axes.legend(loc="upper right", ncols=3, fontsize=8)
    _bars(canvas.add_subplot(grid[-1, :]), np.bincount(ids[ids >= 0], minlength=len(names)), names)
    picture = io.BytesIO()
    canvas.savefig(picture, format="png", dpi=110)
    pyplot.close(canvas)
    with atomic(path) as handle:
        handle.write(picture.getvalue())


def _bars(axes, counts, names):
    bars = axes.barh(range(len(names)), counts, color="tab:gray")
    axes.bar_label(bars, [f"{count} ({count / max(1, counts.sum()):.0%})" for count in counts], padding=4)
    axes.set(yticks=range(len(names)), yticklabels=names, xlabel="windows", xlim=(0, 1.18 * max(1, counts.max())))
    axes.invert_yaxis()
    axes.set_title("windows per activity", fontsize=10)
