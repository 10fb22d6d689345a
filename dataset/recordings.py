"""Your own recordings: CSV files described by a JSON, as dataset/recordings_motionsense.json shows.

Keys of the JSON (columns are named as in the files' header line):

files       which files under --raw, with * and ? (* also crosses folders); default "*.csv"
separator   between cells; default ","
path        regular expression searched in each file's path; its named groups can serve as label, user, ...
recording   where one recording ends and the next begins within a file: {"column": NAME}; default: a file is one
time        {"column": NAME, "unit": "s", "ms", "us" or "ns"}, or {"rate": HZ} for samples at a fixed rate;
            with "sort": true, rows are sorted by time and repeated times dropped instead of refused
acc         {"columns": [X, Y, Z], "unit": "m/s2" or "g", "gravity": true if it is contained, or the three columns of
            gravity, in the same unit, that are to be added}
gyro        {"columns": [X, Y, Z], "unit": "rad/s" or "deg/s"}
label       the activity: {"column": NAME}, {"path": GROUP} or {"value": TEXT}
user        likewise, optional; becomes a label column
position    likewise, optional; becomes a label column
activities  {label as it stands in the files: class, or null to drop it}; every label must be listed
classes     the classes in the order of their ids; default the paper's four
max_gap     seconds without a sample after which a new stretch begins; default 0.1, or 2.5 sampling intervals if longer
"""

import fnmatch
import re

import numpy as np

from bookkeeping.commands import UserError
from dataset.archives import open_source
from dataset.resample import HIGHEST, LOWEST, nominal_rate, resample
from dataset.tables import header, read_csv
from dataset.windows import CLASSES, GRAVITY, RATE, STEPS, Windows, runs, window_starts

LIMIT = 16 << 30  # bytes that an archive may unpack to
SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
ACC = {"m/s2": 1.0, "m/s²": 1.0, "g": GRAVITY}
GYRO = {"rad/s": 1.0, "deg/s": float(np.pi / 180)}
WHY_GRAVITY = (
    "CrossHAR's acceleration contains gravity: how its share moves between the axes tells the device's attitude, and a "
    "model trained with it cannot read recordings without"
)
WHY_GYRO = (
    "CrossHAR's models read six channels, and its augmentation turns acceleration and rotation rate together; "
    "recordings of an accelerometer alone cannot be used"
)
TOP = {
    "files",
    "separator",
    "path",
    "recording",
    "time",
    "acc",
    "gyro",
    "label",
    "user",
    "position",
    "activities",
    "classes",
    "max_gap",
}


class Layout:
    """A checked recordings JSON. Attributes are the keys above. Raises UserError that names the file and the key."""

    def __init__(self, path, labelled=True):
        from bookkeeping.artefacts import read_json

        self.where = str(path)
        spec = read_json(path, "the description of your recordings")
        self._object(spec, "the file", TOP)
        self.files = self._text(spec, "files", "*.csv")
        self.separator = self._text(spec, "separator", ",")
        if len(self.separator.encode()) != 1:
            self._fail("separator", "must be one character")
        self.max_gap = spec.get("max_gap")
        if self.max_gap is not None and not (_number(self.max_gap) and self.max_gap > 0):
            self._fail("max_gap", "must be a number of seconds above 0")
        try:
            self.path = re.compile(self._text(spec, "path", ""))
        except re.error as error:
            self._fail("path", f"is no regular expression ({error})")
        self.recording = self._origin(spec, "recording", {"column"})
        labelled = labelled or "label" in spec
        self.label = self._origin(spec, "label", required=True) if labelled else ("value", "")
        self.columns = {key: self._origin(spec, key) for key in ("position", "user") if key in spec}
        self._time(spec)
        self._sensors(spec)
        self._activities(spec if labelled else {"activities": {"": None}})

    def _fail(self, key, trouble):
        raise UserError(f"{self.where}: {key!r} {trouble}")

    def _object(self, value, key, known):
        from difflib import get_close_matches

        if not isinstance(value, dict):
            self._fail(key, "must be an object of keys and values")
        for name in value:
            if name not in known:
                near = get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
                raise UserError(f"{self.where}: unknown key {name!r} in {key}; {hint}")

    def _text(self, spec, key, default):
        value = spec.get(key, default)
        if not isinstance(value, str) or (not value and default):
            self._fail(key, "must be a text")
        return value

    def _origin(self, spec, key, known=frozenset({"column", "path", "value"}), required=False):
        """Where a text comes from: ("column" | "path" | "value", name), or None."""
        if key not in spec and not required:
            return None
        value = spec.get(key)
        if not isinstance(value, dict) or len(value) != 1 or not all(isinstance(v, str) and v for v in value.values()):
            self._fail(key, "must be " + " or ".join(f'{{"{k}": ...}}' for k in sorted(known)))
        self._object(value, key, known)
        (kind, name), *_ = value.items()
        if kind == "path" and name not in self.path.groupindex:
            self._fail(key, f"names the group {name!r}, which 'path' does not have: write (?P<{name}>...) there")
        return kind, name

    def _time(self, spec):
        time = spec.get("time")
        self._object(time, "time", {"column", "unit", "rate", "sort"})
        self.rate, self.time = time.get("rate"), time.get("column")
        self.sort = time.get("sort", False)
        if (self.rate is None) == (self.time is None) or (self.time is not None and not isinstance(self.time, str)):
            self._fail("time", 'must be {"column": NAME, "unit": ...} or {"rate": HZ}')
        if self.rate is not None:
            if not _number(self.rate) or not LOWEST <= self.rate <= HIGHEST or "unit" in time or self.sort:
                self._fail("time", f"must give a rate of {LOWEST} to {HIGHEST} Hz, and neither unit nor sort with it")
        elif time.get("unit") not in SECONDS or not isinstance(self.sort, bool):
            self._fail("time", f"needs a unit, one of {', '.join(SECONDS)}; 'sort' is true or false")
        self.time_unit = SECONDS.get(time.get("unit"))

    def _sensors(self, spec):
        for key, why in (("acc", "the acceleration"), ("gyro", WHY_GYRO)):
            if key not in spec:
                self._fail(key, f"is missing: {why}")
        acc, gyro = spec["acc"], spec["gyro"]
        self._object(acc, "acc", {"columns", "unit", "gravity"})
        self._object(gyro, "gyro", {"columns", "unit"})
        self.acc, self.gyro = self._three(acc, "acc"), self._three(gyro, "gyro")
        for key, value, units in (("acc", acc, ACC), ("gyro", gyro, GYRO)):
            if value.get("unit") not in units:
                self._fail(key, f"needs a unit, one of {', '.join(units)}")
        self.acc_scale, self.gyro_scale = ACC[acc["unit"]], GYRO[gyro["unit"]]
        gravity = acc.get("gravity")
        if not isinstance(gravity, (bool, list)):
            self._fail("acc", 'must say "gravity": true if it is contained, else name gravity\'s three columns there')
        if gravity is False:
            self._fail(
                "acc", f"is said to be without gravity: {WHY_GRAVITY}; name the three columns of gravity instead"
            )
        self.gravity = self._three({"columns": gravity}, "acc, gravity") if isinstance(gravity, list) else None

    def _three(self, value, key):
        names = value.get("columns")
        if not isinstance(names, list) or len(names) != 3 or not all(isinstance(n, str) for n in names):
            self._fail(key, "must name three columns, for x, y and z")
        if len(set(names)) != 3:
            self._fail(key, "names one column twice")
        return names

    def _activities(self, spec):
        self.classes, self.activities = spec.get("classes", list(CLASSES)), spec.get("activities")
        if (
            not isinstance(self.classes, list)
            or not self.classes
            or len(set(map(str, self.classes))) < len(self.classes)
        ):
            self._fail("classes", "must be a list of different names")
        if not isinstance(self.activities, dict) or not self.activities:
            self._fail("activities", "must map each label of the files to a class, or to null to drop it")
        for label, kind in self.activities.items():
            if kind is not None and kind not in self.classes:
                self._fail("activities", f"maps {label!r} to {kind!r}, which is none of {', '.join(self.classes)}")


def _number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)


def convert(layout, raw):
    """Windows of the recordings under `raw` (a folder or zip), and the labels' classes.

    Returns (Windows, {what was left out: count}). Raises UserError for malformed files, naming the file and line.
    """
    with open_source(raw, LIMIT, fnmatch.translate(layout.files)) as source:
        names = sorted(source.matching(fnmatch.translate(layout.files)), key=_file_order)
        parts = [part for name in names for part in _stretches(layout, source, name)]
        dropped = {"label mapped to null": sum(1 for part in parts if part is None)}
        parts = [part for part in parts if part is not None]
    whole = [part for part in parts if len(part[0]) >= STEPS]
    if not whole:
        raise UserError(f"--raw {raw}: no stretch of one activity without a gap lasts the 6 s of a window")
    steps = np.concatenate([samples for samples, _ in whole])
    length = np.array([len(samples) for samples, _ in whole])
    starts, part = window_starts(np.cumsum(length) - length, length, STEPS)
    data = steps[starts[:, None] + np.arange(STEPS)].astype(np.float32)
    activity = np.array([keys["label"] for _, keys in whole])[part]
    columns = {}
    for key in layout.columns:
        text = [keys[key] for _, keys in parts]
        known = sorted(set(text), key=lambda name: (not name.isdecimal(), int(name) if name.isdecimal() else 0, name))
        columns[key] = (np.array([known.index(keys[key]) for _, keys in whole])[part], known)
    dropped["shorter than 6 s"] = len(parts) - len(whole)
    return Windows(data, activity, columns), {key: count for key, count in dropped.items() if count}


def _file_order(name):
    """Folders by name, files within one by name with numbers in numerical order: sub_3.csv before sub_24.csv."""
    folder, _, file = name.rpartition("/")
    return folder, [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", file)]


def _stretches(layout, source, name):
    """The stretches of one file, each of one recording and one label, without a gap.

    Yields (samples at 20 Hz (s, 6), {"label": class, "user": ..., "position": ...}), or None for a dropped label.
    """
    time, samples, keys, gap, order = _ordered(layout, source, name)
    first, length = runs(*(place for _, place in keys.values()), gap)
    for begin, count in zip(first.tolist(), length.tolist(), strict=True):
        part = slice(begin, begin + count)
        found = {key: values[place[begin]] for key, (values, place) in keys.items()}
        if found["label"] not in layout.activities:
            raise UserError(
                f"{source.label}: {name}, line {order[begin] + 2}: label {found['label']!r} is not in 'activities' of "
                f"{layout.where}; add it there, with null to drop it"
            )
        found["label"] = layout.activities[found["label"]]
        if found["label"] is None:
            yield None
        elif count < 3:
            yield np.empty((0, 6)), found
        else:
            yield resample(time[part], samples[part], layout.rate), found


def _ordered(layout, source, name):
    """The rows of one file, recording after recording.

    Returns (time (n,) s, samples (n, 6) in m/s^2 and rad/s, {key: (values, place of each row (n,))}, the number of the
    gap-free part of each row (n,), its place in the file (n,)).
    """
    table, texts = _read(layout, source, name)
    acc = np.stack([table[c] for c in layout.acc], axis=1)
    if layout.gravity:
        acc = acc + np.stack([table[c] for c in layout.gravity], axis=1)
    gyro = np.stack([table[c] for c in layout.gyro], axis=1)
    samples = np.concatenate([acc * layout.acc_scale, gyro * layout.gyro_scale], axis=1)  # (n, 6)
    time = table[layout.time] * layout.time_unit if layout.time else np.arange(len(samples)) / layout.rate
    recording = texts["recording"][1]
    order = np.lexsort((time, recording)) if layout.sort else np.argsort(recording, kind="stable")
    if layout.sort:
        again = np.flatnonzero((np.diff(time[order]) == 0) & (np.diff(recording[order]) == 0)) + 1
        order = np.delete(order, again)
    time, samples = time[order], samples[order]
    keys = {key: (values, place[order]) for key, (values, place) in texts.items()}
    return time, samples, keys, _gaps(layout, time, keys["recording"], order, f"{source.label}: {name}"), order


def _read(layout, source, name):
    """Columns of one file: numbers {column: (n,)}, and texts {key: (values, place of each row (n,))}."""
    where = f"{source.label}: {name}"
    match = layout.path.search(name)
    if not match:
        raise UserError(f"{layout.where}: 'path' does not match {name}; mend it, or narrow 'files'")
    names = header(source, name, layout.separator)[0]
    numbers = layout.acc + (layout.gravity or []) + layout.gyro + ([layout.time] if layout.time else [])
    origins = {"recording": layout.recording or ("value", ""), "label": layout.label, **layout.columns}
    for column in [*numbers, *(name for kind, name in origins.values() if kind == "column")]:
        if names.count(column) != 1:
            why = (
                f"; {WHY_GYRO}"
                if column in layout.gyro
                else f"; {WHY_GRAVITY}"
                if column in (layout.gravity or [])
                else ""
            )
            times = "no column" if column not in names else "more than one column"
            raise UserError(f"{where} has {times} {column!r} (there: {', '.join(names)[:200]}){why}")
    types = {column: (names.index(column), float) for column in numbers}
    types |= {("text", name): (names.index(name), str) for kind, name in origins.values() if kind == "column"}
    table = read_csv(source, name, types, layout.separator)
    n = len(table[layout.acc[0]])
    texts = {}
    for key, (kind, value) in origins.items():
        if kind == "column":
            values, place = table["text", value]
            texts[key] = [text.strip() for text in values], place
        else:
            texts[key] = [match[value] or "" if kind == "path" else value], np.zeros(n, np.int64)
    return table, texts


def _gaps(layout, time, recording, order, where):
    """The number of the gap-free part that each row belongs to, (n,). Refuses time that does not advance."""
    if not layout.time:
        return np.zeros(len(time), np.int64)
    values, place = recording
    step, same = np.diff(time), np.diff(place) == 0
    back = np.flatnonzero(same & (step <= 0))
    if len(back):
        raise UserError(
            f"{where}, line {order[back[0] + 1] + 2}: the time does not advance; mend the file, or say "
            f'"sort": true under "time" in {layout.where}'
        )
    gap = np.zeros(len(time), np.int64)
    first, length = runs(place)
    for begin, count in zip(first.tolist(), length.tolist(), strict=True):  # recordings
        if count < 3:
            continue
        part = slice(begin, begin + count)
        rate = nominal_rate(time[part])
        if not LOWEST * 0.95 <= rate <= HIGHEST * 1.05:
            what = f", recording {values[place[begin]]!r}" if layout.recording else ""
            raise UserError(
                f"{where}{what} has {rate:.3g} samples a second, not {LOWEST} to {HIGHEST}; is the time's unit right?"
            )
        limit = layout.max_gap or max(0.1, 2.5 / rate)
        gap[begin + 1 : begin + count] = np.cumsum(np.diff(time[part]) > limit + 1e-9)
    return gap


def read(raw, recordings):
    """Whole recordings under `raw` (a folder or zip) that the JSON `recordings` describes, for predict.py.

    Yields, a file at a time, (name, samples (n, 6) float32, time (n,) s, False: no date, (ids (n,), names) of the
    labels): at 20 Hz, gaps showing in `time`, -1 where a label is none of a class. 'label' and 'activities' may be left
    out. Nothing is written. Raises UserError as `convert` does.
    """
    layout = Layout(recordings, labelled=False)
    with open_source(raw, LIMIT, fnmatch.translate(layout.files)) as source:
        for name in sorted(source.matching(fnmatch.translate(layout.files)), key=_file_order):
            yield from _whole(layout, source, name)


def _whole(layout, source, name):
    """The recordings of one file, as `read` yields them."""
    time, samples, keys, gap, _ = _ordered(layout, source, name)
    texts, label = keys.pop("label")
    classes = [layout.activities.get(text) for text in texts]
    known = sorted({kind for kind in classes if kind})
    class_of = np.array([known.index(kind) if kind else -1 for kind in classes])
    first, length = runs(*(place for _, place in keys.values()))
    for number, (begin, count) in enumerate(zip(first.tolist(), length.tolist(), strict=True), 1):
        parts = []
        for start, many in zip(*(part.tolist() for part in runs(gap[begin : begin + count])), strict=True):
            part = slice(begin + start, begin + start + many)
            if many >= 3:
                made = resample(time[part], samples[part], layout.rate).astype(np.float32)
                at = time[part][0] + np.arange(len(made)) / RATE
                nearest = np.minimum(np.searchsorted(time[part], at), many - 1)
                parts.append((made, at, class_of[label[part][nearest]]))
        if parts:
            made, at, ids = map(np.concatenate, zip(*parts, strict=True))
            yield f"{name} {number}" if len(first) > 1 else name, made, at, False, (ids, known)
