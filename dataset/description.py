"""The JSON that describes recordings: columns, clocks, units, labels. docs/recordings.md has all keys.

A simple file needs `time`, `acc`, `gyro`, `label`; the ready descriptions of sensor apps are config/recordings/*.json,
lists of variants of which the first that fits a folder is taken (`when`).
"""

import fnmatch
import re
from difflib import get_close_matches
from typing import NamedTuple

import numpy as np

from bookkeeping.commands import UserError
from dataset.resample import HIGHEST, LOWEST
from dataset.windows import CLASSES, GRAVITY, MERGED

SECONDS = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
DATES = ("iso", "day-first", "month-first")
ACC = {"m/s2": 1.0, "m/s²": 1.0, "g": GRAVITY, "g/64": GRAVITY / 64}
GYRO = {"rad/s": 1.0, "deg/s": float(np.pi / 180)}
WHY_GRAVITY = (
    "CrossHAR's acceleration contains gravity: how its share moves between the axes tells the device's attitude, and a "
    "model trained with it cannot read recordings without"
)
FORM = {"separator": None, "decimal": None, "skip": 0, "header": True, "row_end": None}
TOP = {"about", "when", "files", "path", "recording", "rows", "time", "acc", "gyro", "label", "user", "position"}
TOP |= {"activities", "classes", "max_gap", "breaks", *FORM}
ROWS = ("samples", "events", "newest")


class Line(NamedTuple):
    """The number that begins a line of the file, counted from 1."""

    number: int


class Clock(NamedTuple):
    """When a row was: a column of times, in a unit; or the rate; or both, and stamps that repeat are spread."""

    column: object = None  # a name, or a number from 1
    unit: str | None = None
    rate: object = None  # Hz, or a Line
    start: object = None  # of the first row, seconds since 1970: a Line
    sort: bool = False  # rows may be out of order


class Sensor(NamedTuple):
    """Three columns of a file, in m/s² or rad/s times `scale`."""

    name: str
    columns: tuple
    unit: str
    scale: float
    file: str | None  # pattern of the file within the recording's folder; None: the recording's own file
    where: tuple  # ((column, text), ...): only the rows that have these texts are this sensor's
    clock: Clock


class Layout:
    """A checked description. Attributes are its keys. Raises UserError that names the file and the key."""

    def __init__(self, spec, where):
        self.where, self.spec = str(where), spec
        self._object(spec, "the file", TOP)
        self.when = self._when(spec.get("when", {}))
        self.files = self._text(spec, "files", None)
        self.form = {key: spec.get(key, default) for key, default in FORM.items()}
        self._form()
        self.max_gap = spec.get("max_gap")
        if self.max_gap is not None and not (number(self.max_gap) and self.max_gap > 0):
            self._fail("max_gap", "must be a number of seconds above 0")
        try:
            self.path = re.compile(self._text(spec, "path", ""))
        except re.error as error:
            self._fail("path", f"is no regular expression ({error})")
        self.rows = spec.get("rows", "samples")
        if self.rows not in ROWS:
            self._fail("rows", f"must be one of {', '.join(ROWS)}")
        self.recording = self._origin(spec, "recording", {"column", "path"})
        self.columns = {key: self._origin(spec, key) for key in ("position", "user") if key in spec}
        self.clock = self._clock(spec.get("time"), "time") if "time" in spec else None
        self._sensors(spec)
        self._label(spec)
        self.breaks = self._marks(spec["breaks"], "breaks") if "breaks" in spec else None
        self._activities(spec)

    @classmethod
    def load(cls, path):
        """The description in a JSON file."""
        from bookkeeping.artefacts import read_json

        return cls(read_json(path, "the description of your recordings"), path)

    def _fail(self, key, trouble):
        raise UserError(f"{self.where}: {key!r} {trouble}")

    def _object(self, value, key, known):
        if not isinstance(value, dict):
            self._fail(key, "must be an object of keys and values")
        for name in value:
            if name not in known:
                near = get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(known))}"
                raise UserError(f"{self.where}: unknown key {name!r} in {key}; {hint}")

    def _text(self, spec, key, default):
        value = spec.get(key, default)
        if value != default and (not isinstance(value, str) or not value):
            self._fail(key, "must be a text")
        return value

    def _form(self):
        form = self.form
        for key in ("separator", "row_end"):
            if form[key] is not None and (not isinstance(form[key], str) or len(form[key].encode()) != 1):
                self._fail(key, "must be one character")
        if form["decimal"] not in (None, ".", ","):
            self._fail("decimal", "must be '.' or ','")
        if not whole(form["skip"]):
            self._fail("skip", "must be the number of lines above the table")
        if not isinstance(form["header"], bool):
            self._fail("header", "must be true, or false where the columns have no names and are numbers from 1")

    def _when(self, when):
        self._object(when, "when", when if isinstance(when, dict) else ())
        for pattern, wanted in when.items():
            if not (isinstance(wanted, list) and all(isinstance(x, str) for x in wanted)) and not (
                isinstance(wanted, dict) and all(isinstance(x, list) for x in wanted.values())
            ):
                self._fail(
                    "when", f"{pattern!r} must be a list of column names, or {{column: [texts of its first row]}}"
                )
        return when

    def _reference(self, value, key):
        """A column: its name, with * for any text, or its number from 1."""
        if isinstance(value, str) and value:
            return value.strip()
        if whole(value) and value >= 1:
            return value
        return self._fail(key, f"names {value!r}: a column is a name, or a number from 1 on")

    def _origin(self, spec, key, known=frozenset({"column", "path", "value"})):
        """Where a text comes from: ("column" | "path" | "value", name), or None."""
        if key not in spec:
            return None
        value = spec[key]
        if not isinstance(value, dict) or len(value) != 1:
            self._fail(key, "must be " + " or ".join(f'{{"{k}": ...}}' for k in sorted(known)))
        self._object(value, key, known)
        (kind, name), *_ = value.items()
        if kind == "column":
            return kind, self._reference(name, key)
        if not isinstance(name, str) or not name:
            self._fail(key, "must be " + " or ".join(f'{{"{k}": ...}}' for k in sorted(known)))
        if kind == "path" and name not in self.path.groupindex:
            self._fail(key, f"names the group {name!r}, which 'path' does not have: write (?P<{name}>...) there")
        return kind, name

    def _clock(self, time, key):
        self._object(time, key, {"column", "unit", "rate", "start", "sort"})
        column, unit, rate, sort = (time.get(k) for k in ("column", "unit", "rate", "sort"))
        if column is None and rate is None:
            self._fail(key, 'must be {"column": NAME, "unit": ...} or {"rate": HZ}, or both where stamps repeat')
        if rate is not None and not self._line(rate) and not (number(rate) and LOWEST <= rate <= HIGHEST):
            self._fail(key, f"must give a rate of {LOWEST} to {HIGHEST} Hz")
        if column is not None and unit not in SECONDS and unit not in DATES:
            self._fail(key, f"needs a unit, one of {', '.join((*SECONDS, *DATES))}")
        if column is None and (unit is not None or sort is not None):
            self._fail(key, "has a rate and no column: leave unit and sort out")
        if sort not in (None, True, False):
            self._fail(key, "'sort' is true or false")
        if time.get("start") is not None and (column is not None or not self._line(time["start"])):
            self._fail(key, "'start' is {\"line\": N}, the line that begins with the seconds since 1970, beside a rate")
        column = None if column is None else self._reference(column, key)
        rate, start = (Line(x["line"]) if isinstance(x, dict) else x for x in (rate, time.get("start")))
        return Clock(column, unit, rate, start, bool(sort))

    @staticmethod
    def _line(value):
        return isinstance(value, dict) and set(value) == {"line"} and whole(value["line"]) and value["line"] >= 1

    def _sensors(self, spec):
        if not isinstance(spec.get("acc"), dict):
            self._fail("acc", "is missing: the acceleration")
        acc = dict(spec["acc"])
        gravity, self.sign = acc.pop("gravity", None), acc.pop("sign", "android")
        if self.sign not in ("android", "ios"):
            self._fail("acc", "'sign' must be android (at rest, screen up, z is +9.8 m/s²) or ios (-1 g)")
        if gravity is False:
            self._fail("acc", f"is without gravity: {WHY_GRAVITY}; name the three columns of gravity as 'gravity'")
        if gravity is not True and not isinstance(gravity, (list, dict)):
            self._fail("acc", 'must say "gravity": true if it is contained, else name gravity\'s three columns there')
        self.acc = self._sensor(acc, "acc", ACC)
        self.gravity = self.gyro = None
        if gravity is not True:
            gravity = gravity if isinstance(gravity, dict) else {"columns": gravity}
            same = {key: acc[key] for key in ("unit", "file", "where", "time") if key in acc}
            self.gravity = self._sensor(same | gravity, "gravity", ACC)
        if spec.get("gyro") is not None:
            self.gyro = self._sensor(spec["gyro"], "gyro", GYRO)
        self.sensors = [sensor for sensor in (self.acc, self.gravity, self.gyro) if sensor]
        taken = {}
        for sensor in self.sensors:
            for column in sensor.columns:
                key = column, sensor.file, sensor.where
                if taken.setdefault(key, sensor.name) != sensor.name:
                    shared = f"names {column!r} too: a column cannot serve {taken[key]} and {sensor.name}"
                    self._fail(sensor.name, f"{shared}; give each sensor its own 'file', or 'where', its own rows")

    def _sensor(self, value, key, units):
        self._object(value, key, {"columns", "unit", "file", "where", "time"})
        names = value.get("columns")
        if not isinstance(names, list) or len(names) != 3:
            self._fail(key, "must name three columns, for x, y and z")
        names = tuple(self._reference(name, key) for name in names)
        if len(set(names)) != 3:
            self._fail(key, "names one column twice")
        if value.get("unit") not in units:
            self._fail(key, f"needs a unit, one of {', '.join(units)}")
        where = value.get("where", {})
        if not isinstance(where, dict) or not all(isinstance(text, (str, int)) for text in where.values()):
            self._fail(key, "'where' must be {column: the text of the rows that are this sensor's}")
        if "time" not in value and self.clock is None:
            self._fail("time", f'is missing for {key}: {{"column": NAME, "unit": ...}} or {{"rate": HZ}}')
        clock = self._clock(value["time"], f"{key}, time") if "time" in value else self.clock
        where = tuple((self._reference(column, key), str(text).strip()) for column, text in where.items())
        return Sensor(key, names, value["unit"], units[value["unit"]], self._text(value, "file", None), where, clock)

    def _label(self, spec):
        self.label, self.label_file = None, None
        label = spec.get("label")
        if isinstance(label, dict) and "file" in label:
            self.label_file = self._marks(label, "label")
        elif "label" in spec:
            self.label = self._origin(spec, "label")

    def _marks(self, value, key):
        """A file of times, each with a text that holds from then on: (pattern, column of the text or None, Clock)."""
        self._object(value, key, {"file", "column", "time"})
        clock = self._clock(value["time"], f"{key}, time") if "time" in value else self.clock
        if clock is None or clock.column is None:
            self._fail(key, 'needs a time of its own: {"column": NAME, "unit": ...}')
        if not self._text(value, "file", None):
            self._fail(key, "needs the pattern of its file")
        column = self._reference(value["column"], key) if "column" in value else None
        if column is None and key == "label":
            self._fail(key, "must name the column of the texts")
        return value["file"], column, clock

    def _activities(self, spec):
        self.classes = spec.get("classes", list(CLASSES))
        if (
            not isinstance(self.classes, list)
            or not self.classes
            or not all(isinstance(name, str) and name for name in self.classes)
            or len(set(self.classes)) < len(self.classes)
        ):
            self._fail("classes", "must be a list of different names")
        same = {name: name for name in self.classes} | {k: v for k, v in MERGED.items() if v in self.classes}
        activities = spec.get("activities", same)
        if not isinstance(activities, dict) or not activities:
            self._fail("activities", "must map each label of the files to a class, or to null to drop it")
        for label, kind in activities.items():
            if kind is not None and kind not in self.classes:
                self._fail("activities", f"maps {label!r} to {kind!r}, which is none of {', '.join(self.classes)}")
        self.activities = {label.strip(): kind for label, kind in activities.items()}

    def patterns(self):
        """Every file pattern that the description reads, the recordings' own first."""
        own = self.acc.file or self.files
        others = [sensor.file for sensor in self.sensors[1:]]
        others += [part[0] for part in (self.label_file, self.breaks) if part]
        return own, [pattern for pattern in others if pattern and pattern != own]


def below(folder, names):
    """Those of the paths that lie in a folder or further down in it; all for ""."""
    return [name for name in names if name.startswith(folder + "/" * bool(folder))]


def fits(pattern, name):
    """Whether a path is what a pattern means: * and ? as in a shell, * across folders, letters of either case."""
    return re.fullmatch(f"(.*/)?(?:{fnmatch.translate(pattern)})", name, re.IGNORECASE) is not None


def number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def whole(value):
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
