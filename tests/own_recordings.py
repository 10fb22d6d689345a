"""A made-up movement that people's own recordings are written of in the tests, and what is right for its windows.

Everything is a formula of time below 5 Hz, and acc x rises with time: so a window tells where in the movement it
begins, and every sound way to 20 Hz gives the same one. Another person's movement is that of other times.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from raw_files import written

from bookkeeping.commands import UserError
from dataset import recordings
from dataset.description import Layout

G = 9.80665
RISE = 0.02  # m/s² in a second, of acc x
NAMES = ["t", "ax", "ay", "az", "gx", "gy", "gz"]
PLAIN = {
    "time": {"column": "t", "unit": "s"},
    "acc": {"columns": NAMES[1:4], "unit": "m/s2", "gravity": True},
    "gyro": {"columns": NAMES[4:], "unit": "rad/s"},
}
NEAR = (0.08, 0.03)  # m/s², rad/s: how near right windows are
HALF_STEP = 0.03  # s: a recording's first window may begin this far from its first sample


def gravity(t):
    """(n, 3) m/s² at t (n,) s, Android's sign."""
    return np.stack([RISE * t, 0.6 * np.sin(0.9 * t), G + 0 * t], 1)


def linear(t):
    """The acceleration without gravity, (n, 3) m/s²."""
    x = 0.3 * np.sin(2 * np.pi * 4.9 * t)
    y = 2 * np.sin(2 * np.pi * 1.9 * t + 0.5 * np.sin(0.7 * t))
    return np.stack([x, y, 1.5 * np.sin(2 * np.pi * 3.1 * t + 1) + 0.4 * np.cos(2 * np.pi * 0.4 * t)], 1)


def acc(t):
    return gravity(t) + linear(t)


def gyro(t):
    """(n, 3) rad/s."""
    z = 0.3 * np.sin(2 * np.pi * 0.6 * t + 2) + 0.1 * np.cos(2 * np.pi * 4.1 * t)
    return np.stack([0.5 * np.sin(2 * np.pi * 1.3 * t), 0.4 * np.sin(2 * np.pi * 2.7 * t + 0.3), z], 1)


def body(t):
    return np.concatenate([acc(t), gyro(t)], axis=1)


def clock(seconds, rate=50.0, start=0.0):
    return start + np.arange(round(seconds * rate)) / rate


def begins(data, near=NEAR):
    """Where in the movement each of the windows (N, 120, 6) begins, in s; asserts that each of them is right."""
    found = []
    for number, window in enumerate(data.astype(np.float64)):
        channels = 3 if np.isnan(window).any() else 6
        assert not np.isnan(window[:, :channels]).any()
        far = 0.25 if near[0] < 0.2 else 2.5  # what is coarse or disturbed tells its begin less exactly
        at = window[:, 0].mean() / RISE - 119 / 40
        for width, step in ((far, 0.02), (0.02, 0.002)):
            tried = at + np.arange(-width, width + step, step)
            error = differences(window[:, :channels], tried) / near[: channels // 3]
            at = tried[error.max(1).argmin()]
        worst = error.max(1).min()
        assert worst <= 1, f"window {number}, near {at:.2f} s: {error[error.max(1).argmin()] * near[: channels // 3]}"
        found.append(at)
    return np.array(found)


def differences(window, at):
    """The largest difference of acc and of gyro between a window (120, C) and those that begin at `at` (k,): (k, C/3).

    At a recording's ends the filter has samples on one side alone: there half of it counts.
    """
    true = body((at[:, None] + np.arange(120) / 20).ravel()).reshape(len(at), 120, 6)[..., : window.shape[1]]
    error = np.abs(true - window)
    error[:, [0, 1, 2, -3, -2, -1]] /= 2.5
    return error.reshape(len(at), 120, -1, 3).max((1, 3))


def assert_begin(data, *expected, near=NEAR, within=HALF_STEP):
    """Assert that right windows begin at these times, which may be arrays, in any order."""
    expected = np.sort(np.concatenate([np.atleast_1d(part) for part in expected]))
    found = np.sort(begins(data, near))
    assert len(found) == len(expected), f"{found.round(2)} instead of {expected.round(2)}"
    assert np.abs(found - expected).max() <= within, f"{found.round(2)} instead of {expected.round(2)}"


def every(first, last, step=6.0):
    """The begins of the windows between two times."""
    return first + step * np.arange(int((last - first) / step + 1e-6))


def table(header, *columns, sep=",", point=".", end="\n", form="{:.6f}"):
    """Text of a table: a header (list of names, text as it is, or None), then arrays (n,), (n, k) or lists of text."""
    flat = [c for group in columns for c in (group.T if np.ndim(group) == 2 else [group])]
    text = [c if isinstance(c, list) else [form.format(x + 0.0).replace(".", point) for x in c.tolist()] for c in flat]
    head = "" if header is None else header if isinstance(header, str) else sep.join(header) + end
    return head + "".join(sep.join(row) + end for row in zip(*text, strict=True))


def plain(t, at=None, header=NAMES, **form):
    """A table of the movement at the times `at`, stamped `t`."""
    return table(header, t, body(t if at is None else at), **form)


def rows_of(text):
    """(header, rows) of a table as lines."""
    header, *rows = text.splitlines()
    return header, rows


def joined(header, rows):
    return "\n".join([header, *rows]) + "\n"


def read(folder, files, spec=PLAIN):
    """(windows, lines of notes) of the files {name: content} in a new folder; `spec` is a description, or "auto".

    `files` may be the Path of what is there.
    """
    raw = files
    if not isinstance(files, Path):
        number = sum(1 for _ in folder.glob("raw*"))
        raw = written(folder / f"raw{number}", files)
    windows, notes = recordings.convert(
        spec if spec == "auto" else Layout(json.loads(json.dumps(spec)), "my.json"), raw
    )
    return windows, list(notes.lines())


def refused(said, folder, files, spec=PLAIN):
    """Assert that reading ends in one line that matches `said`; returns it."""
    with pytest.raises(UserError, match=said) as caught:
        read(folder, files, spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)
