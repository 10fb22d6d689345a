"""Your own recordings, as a description says (dataset/description.py, docs/recordings.md): to windows, or whole.

Sessions (dataset/sessions.py) fall into stretches without a gap or change of label; each is resampled to 20 Hz with all
of its sensors on one time. What is left out is counted in Notes.

Axes: n samples of a recording, s steps at 20 Hz.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from bookkeeping.commands import UserError
from dataset import apps, formats
from dataset.archives import open_source
from dataset.clocks import Notes, between
from dataset.description import Layout
from dataset.resample import extent, resample, steps_in
from dataset.sessions import sessions
from dataset.windows import RATE, STEPS, Windows, window_starts

LIMIT = 16 << 30  # bytes that an archive may unpack to
DATED = (9.4e8, 4.2e9)  # s since 1970 that are a date of 1999 to 2103; less counts from a start of its own


# --------------------------------------------------------------------------------------------- sessions to 20 Hz


class Part(NamedTuple):
    """Samples at 20 Hz without a gap or, if asked for, a change of label."""

    begin: float  # s, of the first of them
    samples: np.ndarray  # (s, 6) m/s², rad/s; NaN in the last three without gyroscope
    label: str


def parts_of(session, by_label, notes):
    """Yield the Parts of a Session: where all sensors were recorded; cut at each change of label if `by_label`."""
    layout = session.layout
    there = {sensor.name for stream in session.streams for sensor in stream.sensors}
    if missing := [sensor.name for sensor in layout.sensors if sensor.name not in there]:
        notes.add("without all of its sensors, left out", f"{session.name}: no sample of {', '.join(missing)}")
        return
    marks = [(-np.inf, ""), *session.marks]
    change = [now for (_, before), (now, text) in pairwise(marks) if text != before and now > -np.inf]
    edges = np.unique([*session.breaks, *(change if by_label else [])])
    for rows in _common(session.streams, edges):
        cut = [(stream.time[a:b], stream.values[a:b]) for stream, (a, b) in zip(session.streams, rows, strict=True)]
        if min(len(time) for time, _ in cut) < 3:
            continue
        label = marks[np.searchsorted([begin for begin, _ in marks], cut[0][0][0], side="right") - 1][1]
        begins, ends = zip(*(extent(time) for time, _ in cut), strict=True)
        begin, steps = max(begins), steps_in(max(begins), min(ends))
        if steps < 1:
            continue
        alone = len(cut) == 1
        made = [resample(t, x) if alone else resample(t, x, begin, steps) for t, x in cut]
        yield Part(begin + 0.5 / RATE, _channels(layout, session.streams, made), label)


def _common(streams, edges):
    """Yield, for each time in which all streams have a stretch and no edge lies, their rows (first, last + 1)."""
    spans = [[(s.time[a], s.time[b - 1], a, b) for a, b in s.parts] for s in streams]
    at = [0] * len(streams)
    while all(i < len(span) for i, span in zip(at, spans, strict=True)):
        here = [span[i] for i, span in zip(at, spans, strict=True)]
        begin, end = max(part[0] for part in here), min(part[1] for part in here)
        if end > begin:
            inner = edges[(edges > begin) & (edges <= end)]
            rows = []
            for stream, (_, _, a, b) in zip(streams, here, strict=True):
                # a sample more on either side, so that a slower sensor still covers the faster one's time
                low = a + max(0, int(np.searchsorted(stream.time[a:b], begin, side="right")) - 1)
                high = a + min(b - a, int(np.searchsorted(stream.time[a:b], end)) + 1)
                cuts = a + np.searchsorted(stream.time[a:b], inner - 1e-9)
                rows.append([low, *cuts.tolist(), high])
            for k in range(len(inner) + 1):
                yield [(cuts[k], cuts[k + 1]) for cuts in rows]
        last = min(range(len(at)), key=lambda i: here[i][1])
        at[last] += 1


def _channels(layout, streams, made):
    """The six channels (s, 6) float32 of the streams' resampled columns, in m/s² with gravity and rad/s."""
    found = {}
    for stream, samples in zip(streams, made, strict=True):
        for i, sensor in enumerate(stream.sensors):
            found[sensor.name] = samples[:, 3 * i : 3 * i + 3] * sensor.scale
    acc = (found["acc"] + found.get("gravity", 0)) * (-1 if layout.sign == "ios" else 1)
    gyro = found.get("gyro", np.full_like(acc, np.nan))
    return np.concatenate([acc, gyro], axis=1).astype(np.float32)


# ------------------------------------------------------------------------------------------------------ two doors


def _all(recordings, raw, notes):
    """Yield the Sessions of all files below `raw`: of a description (Layout), or of those that fit for "auto"."""
    with open_source(raw, LIMIT, formats.TABLES) as source:
        names, used = list(source.sizes), set()
        tables = [name for name in names if formats.ending(name)]
        chosen = [(recordings, tables)] if isinstance(recordings, Layout) else apps.choose(source, tables, notes)
        for layout, mine in chosen:
            yield from sessions(layout, source, mine, notes, used)
        if not used:
            first = ", ".join(sorted(names)[:3])
            raise UserError(f"--raw {raw} does not hold the files of {chosen[0][0].where} (it holds {first}, ...)")
        for name in sorted(set(names) - used):
            what = "not a recording of the description" if formats.ending(name) else "of a kind that is not read"
            notes.add(f"files not read, {what}", name)
        for name, why in source.skipped.items():
            notes.add(f"files not read, {why}", name)


def convert(layout, raw):
    """Windows of the recordings under `raw` (a folder, zip or file), unlabelled where there is no label ("").

    Returns (Windows, Notes). Raises UserError for malformed files, naming the file and line.
    """
    notes, kept, texts = Notes(), [], []
    for session in _all(layout, raw, notes):
        for part in parts_of(session, True, notes):
            label = _class(session, part)
            length = f"{session.name}, {between(part.begin, part.begin + len(part.samples) / RATE)}"
            if part.label and label is None:
                notes.add("label mapped to null, left out", f"{length}: {part.label}")
            elif len(part.samples) < STEPS:
                notes.add("shorter than the 6 s of a window, left out", length)
                texts.append(session.keys)
            else:
                kept.append((part.samples, label or "", session.keys, length))
                texts.append(session.keys)
    if any(label for _, label, *_ in kept):
        for _, label, _, length in kept:
            if not label:
                notes.add("without label, left out", length)
        kept = [part for part in kept if part[1]]
    if not kept:
        why = "; ".join(notes.lines())
        raise UserError(f"--raw {raw}: no stretch of one activity without a gap lasts the 6 s of a window ({why})")
    return _windows(kept, texts), notes


def _class(session, part):
    """The class of a part's label, None for none. Raises UserError for a label that the description does not have."""
    layout = session.layout
    if part.label and part.label not in layout.activities:
        what = f"{session.name}: label {part.label!r} is not in 'activities' of {layout.where}"
        raise UserError(f"{what}; add it there, with null to drop it")
    return layout.activities.get(part.label)


def _windows(kept, texts):
    """The Windows of parts (samples, class, keys, ...); `texts` are all keys that occurred."""
    steps = np.concatenate([samples for samples, *_ in kept])
    length = np.array([len(samples) for samples, *_ in kept])
    starts, part = window_starts(np.cumsum(length) - length, length, STEPS)
    data = steps[starts[:, None] + np.arange(STEPS)]
    missing = np.isnan(data).any((1, 2))
    if missing.any() and not missing.all():
        raise UserError("some recordings have a gyroscope and some have none: prepare them as two data sets")
    activity = np.array([label for _, label, *_ in kept])[part]
    columns = {}
    for key in kept[0][2]:
        known = {keys[key] for keys in texts}
        known = sorted(known, key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
        columns[key] = (np.array([known.index(keys[key]) for _, _, keys, _ in kept])[part], known)
    return Windows(data, activity, columns)


def read(raw, recordings, notes):
    """Whole recordings under `raw` (a folder, zip or file), for predict.py; `recordings` is a description, or auto.

    Yields (name, samples (n, 6) float32, time (n,) s, whether that is since 1970, (ids (n,), names) of the labels), a
    session at a time, at 20 Hz: gaps show in `time`, -1 is no label. Nothing is written; `notes` (Notes) gets what was
    left out. Raises UserError as `convert` does.
    """
    layout = recordings if recordings == "auto" else Layout.load(recordings)
    for session in _all(layout, raw, notes):
        parts = [part for part in parts_of(session, False, notes) if len(part.samples)]
        if not parts:
            continue
        samples = np.concatenate([part.samples for part in parts])
        time = np.concatenate([part.begin + np.arange(len(part.samples)) / RATE for part in parts])
        layout, begins = session.layout, np.array([begin for begin, _ in session.marks])
        known = sorted({kind for kind in layout.activities.values() if kind})
        of_mark = [layout.activities.get(text, text) if text else None for _, text in session.marks]
        known += sorted({kind for kind in of_mark if kind and kind not in known})
        ids = np.array([known.index(kind) if kind else -1 for kind in of_mark] + [-1])
        at = np.searchsorted(begins, time, side="right") - 1
        yield session.name, samples, time, bool(DATED[0] < time[0] < DATED[1]), (ids[at], known)
