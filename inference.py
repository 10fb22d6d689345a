"""Trained models at work: what the activity is, in windows or in whole recordings. For scripts, notebooks, programs.

    model = inference.load_ready()                     # the model that comes with the project, or
    model = inference.load(utils.Files("uci", "20_120", "v2"))  # one of your own, named as by -d -dv -mv -s
    model.probabilities(windows)                       # (N, 120, 6) m/s^2 and rad/s -> (N, K)
    for judged in inference.judge(model, recordings):  # dataset.recordings.read reads them from files
        rows = inference.table(judged, model.names)    # one dict a window or gap, as predict.py's CSV has them

Nothing here prints, reads a command line or writes a file. Axes: n samples of a recording at 20 Hz, W or N windows of
T = 120 steps, K classes. Channels: acceleration x, y, z in m/s^2 with gravity, rotation rate x, y, z in rad/s; NaN in
the last three of a whole window says that there is no gyroscope (model version v2 judges without, v1 cannot).
"""

import functools
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import torch

import metrics
import plain
import utils
import v2
from bookkeeping import artefacts, commands, configs
from bookkeeping.commands import UserError
from models import DEAD_CLASSIFIER, DEAD_MASKED, Classifier, MaskedModel, encode

READY = configs.HERE / "saved" / "ready" / "model.pt"  # the model that comes with the project, its JSON beside it
RATE, STEPS = 20, 120  # Hz and steps of a window
UNSURE, GAP, SHORT = "unsure", "gap", "too short"  # what stands in place of an activity
COLUMNS = ("recording", "start", "end", "activity", "confidence")  # of a table, before one for each class
BATCH = 1024  # windows cut at a time


# ------------------------------------------------------------------------------------------------ loading a model


class Model(NamedTuple):
    """A trained encoder and classifier, ready for use."""

    names: list  # of the K classes, in the order of the probabilities' columns
    logits_of: Any  # raw windows, a float32 tensor (N, T, 6) -> logits (N, K) on the CPU
    temperature: float | None  # of its JSON; None where none is recorded (1 is taken then)
    version: str  # -mv
    record: dict | None  # the classifier's JSON: configuration, what it was made from; None beside a released file
    as_module: Any = None  # of version v2: () -> a module that computes what logits_of does, for export.py

    def probabilities(self, windows):
        """Calibrated class probabilities of raw windows: (N, T, 6) in m/s^2 and rad/s -> (N, K) float64.

        Raises UserError for windows of another shape, for numbers that are not finite, and for windows without
        gyroscope where the model needs one.
        """
        x = torch.as_tensor(np.asarray(windows, dtype=np.float32))
        if x.ndim != 3 or x.shape[1:] != (STEPS, 6):
            raise UserError(f"windows of shape {tuple(x.shape)}; the model takes (windows, {STEPS}, 6) at {RATE} Hz")
        if not len(x):
            return np.empty((0, len(self.names)))
        missing = x[..., 3:].isnan().all(2).all(1)
        if missing.any() and self.as_module is None:
            raise UserError(
                f"-mv {self.version} needs a gyroscope; take -mv v2, or the model that comes with the project"
            )
        if not (x[..., :3].isfinite().all() and x[~missing].isfinite().all()):
            raise UserError("windows hold NaN or infinity; only a whole window's gyroscope may be missing (NaN)")
        return metrics.probabilities(self.logits_of(x), self.temperature or 1.0)


@torch.no_grad()
def classify(engine, model, classifier, windows):
    """Logits (N, classes) of raw windows (N, T, C): encoder, then classifier, batch after batch."""
    classifier.eval()
    return torch.cat([classifier(h) for h in encode(engine, model, windows)]).cpu()


def load_networks(files, engine, checkpoint, cfgs, names, flags):
    """The encoder and the classifier from their files, as a function: raw windows (N, T, C) -> logits on the CPU.

    `cfgs` are the configurations of the encoder and of the classifier, `flags` those that name the model (again_of).
    """
    path, (model_cfg, classifier_cfg), again = files.classifier(), cfgs, again_of(flags)
    if configs.method_of(files.model_version) == "v2":  # its classifier's file holds the whole network
        logits_of = v2.load_classifier(path, classifier_cfg, names, f"make it with: {again}")
        return lambda windows: logits_of(windows, engine.device)
    classifier, model = Classifier(classifier_cfg, len(names)), MaskedModel(model_cfg)
    artefacts.load_state(path, classifier, DEAD_CLASSIFIER, f"make it with: {again}")
    artefacts.load_state(checkpoint, model, DEAD_MASKED, f"make it with: {commands.again('pretrain', flags)}")
    model, classifier = model.to(engine.device), classifier.to(engine.device)
    return lambda windows: classify(engine, model, classifier, windows)


def recorded_temperature(path, record):
    """The classifier's temperature from its JSON; None where none is recorded. Raises UserError for no such number."""
    if record is None or "temperature" not in record:
        return None
    found = record["temperature"]
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < float("inf"):
        raise UserError(f"{artefacts.record_path(path)}: 'temperature' must be a number above 0; make it again")
    return float(found)


def check_made_from(path, record, checkpoint, model_cfg, again):
    """Raise UserError unless the classifier `path` was made from the files that are there now and from this encoder.

    `checkpoint` is the encoder's file, None for version v2, which is not pretrained.
    """
    artefacts.check_parents(path, record, again)
    if checkpoint:
        artefacts.check_same(checkpoint, record["config"]["embedding"], {"model": model_cfg})
        made_from = record["config"]["embedding"].get("checkpoint", str(checkpoint))
        if made_from != str(checkpoint):
            raise UserError(f"{path} was made from {made_from}, not from {checkpoint}; check -f and -s")


def again_of(flags):
    """The commands that make the classifier that `flags` ({name: value}) name, for messages."""
    if configs.method_of(flags["model_version"]) == "v1":
        return " && ".join(commands.again(script, flags) for script in ("embedding", "classifier"))
    return commands.again("classifier", flags | {"model_file": None, "augument_method": None})


def flags_of(files):
    """The flags that name `files`."""
    names = ("dataset", "dataset_version", "model_version", "save_model", "model_file")
    return dict(zip(names, files, strict=True))


RECORD = {  # what is read of a classifier's configuration, in the form of artefacts.fits
    "dataset": str,
    "model_version?": str,
    "model": dict,
    "train": {"seed": int, "split_by?": str},
    "label_index": int,
    "classes": [str],
    "embedding": {
        "pretrain?": {"seed?": int, "lambda1?": artefacts.NUMBER, "lambda2?": artefacts.NUMBER},
        "epochs?": (int, type(None)),
        "checkpoint?": str,
        "model?": dict,
    },
}


def named(dataset=None, version=None, model_version=None, stem=None, source=None, method="v1"):
    """The model that the flags -d, -dv, -mv, -s and -f name, as utils.Files; None: the one that comes with the project.

    That is meant by none of them, and by -s ready without -d. `method` is the default of -mv.
    """
    given = (dataset, version, model_version, stem, source)
    if not any(given) or (stem == "ready" and not any(given[:2]) and model_version in (None, "v2")):
        return None
    defaults = ("uci", f"{RATE}_{STEPS}", method, "model", None)
    return utils.Files(*(value or default for value, default in zip(given, defaults, strict=True)))


def load(files, engine=None, gpu=None):
    """The Model in `files` (utils.Files: data set, version, model version, stem), as the scripts trained it.

    Its classes are those its JSON names; of a released classifier, which has none, the source's activities. `engine`
    is what computes (plain.engine() by default, or fast.engine()); `gpu` is the flag -g, for messages. Raises UserError
    for missing or malformed files, and for a classifier whose parents have changed since.
    """
    path, flags = files.classifier(), flags_of(files) | {"gpu": gpu}
    again = again_of(flags)
    is_v1 = configs.method_of(files.model_version) == "v1"
    cfgs = configs.read_encoder_config(files.model_version), configs.read_classifier_config(files.model_version)
    record = artefacts.load_record(path, RECORD)
    config = record["config"] if record else {}
    names = config.get("classes") or configs.label_names(configs.dataset_config(files.dataset, files.version), 0)[1]
    pretrain = config.get("embedding", {}).get("pretrain", {})
    pretrain = configs.read_config("config/pretrain.json", configs.PRETRAIN_KEYS, configs.DEAD_KEYS) | pretrain
    checkpoint = files.checkpoint(utils.loss_weights(pretrain)) if is_v1 else None
    if record:
        artefacts.check_same(path, config, {"model": cfgs[1], "dataset": files.dataset})
    logits_of = load_networks(files, engine or plain.engine(), checkpoint, cfgs, names, flags)
    if record:
        check_made_from(path, record, checkpoint, cfgs[0], again)
    as_module = None if is_v1 else functools.partial(v2.load_judge, path, cfgs[1], names, f"make it with: {again}")
    return Model(names, logits_of, recorded_temperature(path, record), files.model_version, record, as_module)


def load_ready(engine=None, path=READY):
    """The Model that comes with the project (saved/ready/); its configuration is the one in its own JSON.

    Raises UserError if it is not there or not as it was written.
    """
    hint = "it comes with the project: fetch the folder saved/ready again, or make it with: python -m experiments.ready"
    record = artefacts.load_record(path, RECORD)
    if record is None:
        raise UserError(f"{path} or the JSON beside it is missing; {hint}")
    config, engine = record["config"], engine or plain.engine()
    parts = (path, config["model"], config["classes"], hint)
    logits_of = v2.load_classifier(*parts)
    return Model(
        config["classes"],
        lambda windows: logits_of(windows, engine.device),
        recorded_temperature(path, record),
        config["model_version"],
        record,
        functools.partial(v2.load_judge, *parts),
    )


# ------------------------------------------------------------------------------------------- judging recordings


class Recording(NamedTuple):
    """A recording at 20 Hz: samples that follow on from each other, but for the gaps that `time` shows."""

    name: str
    samples: np.ndarray  # (n, 6) float32 in m/s^2 and rad/s; columns 3 to 5 NaN where there is no gyroscope
    time: np.ndarray  # (n,) float64, s: the recording's own time, or since 1970 (UTC) if `dated`
    dated: bool = False
    labels: Any = None  # (ids (n,), names): each sample's activity, -1 for none; None without labels


class Judged(NamedTuple):
    """A recording's windows and what the model says of them, in the order of time."""

    name: str
    dated: bool  # whether times are seconds since 1970 (UTC) instead of the recording's own
    start: np.ndarray  # (W,) s
    end: np.ndarray  # (W,) s
    probabilities: np.ndarray  # (W, K) float64, calibrated
    spans: np.ndarray  # (W, 2) s: the moments to whose middle no window is nearer; they don't overlap
    gyroscope: np.ndarray  # (W,) bool: judged with one
    gaps: list  # of (start, end, GAP or SHORT): nothing recorded, or recorded for less than a window's 6 s
    labels: np.ndarray  # (W,) int64: the window's class; -1 without one label throughout that the model knows
    unknown: dict  # {label that is none of the model's classes: windows}


def judge(model, recordings, step=3.0, progress=None):
    """Yield a Judged for each Recording: windows of 6 s every `step` seconds, none across a gap.

    `progress` is called with the seconds of recording done since the last call. Time and memory grow with the
    recordings' length alone; one recording is in memory at a time, its windows are cut piece by piece. Raises
    ValueError for a step of less than a sample (0.05 s), UserError as Model.probabilities does.
    """
    every = round(step * RATE)
    if every < 1:
        raise ValueError(f"a step of {step} s is less than a sample")
    for recording in recordings:
        yield judge_recording(model, recording, every, progress or (lambda seconds: None))


def judge_recording(model, recording, every, progress):
    """The Judged of a Recording, a window every `every` samples."""
    parts, gaps, before = [], [], None
    for first, last in stretches(recording.time):
        begin, end = recording.time[first], recording.time[last - 1] + 1 / RATE
        if before is not None:
            gaps.append((before, begin, GAP))
            progress(begin - before)
        before = end
        starts = np.arange(first, last - STEPS + 1, every)
        if not len(starts):
            gaps.append((begin, end, SHORT))
            progress(end - begin)
            continue
        middle = recording.time[starts] + STEPS / RATE / 2
        edges = np.concatenate([[begin], (middle[1:] + middle[:-1]) / 2, [end]])
        found = []
        for piece in np.array_split(starts, -(-len(starts) // BATCH)):
            windows, missing = cut(recording.samples, piece)
            found.append((model.probabilities(windows), ~missing))
            progress((piece[-1] - piece[0] + every) / RATE)
        probabilities, gyroscope = map(np.concatenate, zip(*found, strict=True))
        parts.append((starts, probabilities, np.stack([edges[:-1], edges[1:]], 1), gyroscope))
    if not parts:
        parts = [(np.zeros(0, np.int64), np.empty((0, len(model.names))), np.empty((0, 2)), np.zeros(0, bool))]
    starts, probabilities, spans, gyroscope = map(np.concatenate, zip(*parts, strict=True))
    start = recording.time[starts]
    labels, unknown = window_labels(recording, starts, model.names)
    end = start + STEPS / RATE
    return Judged(recording.name, recording.dated, start, end, probabilities, spans, gyroscope, gaps, labels, unknown)


def stretches(time):
    """Where samples follow on from each other: a list of (first, last + 1) of `time` (n,) in seconds."""
    cuts = np.flatnonzero(np.diff(time) > 1.5 / RATE) + 1
    edges = [0, *cuts.tolist(), len(time)]
    return [(a, b) for a, b in zip(edges[:-1], edges[1:], strict=True) if b > a]


def cut(samples, starts):
    """Windows (W, T, 6) of samples (n, 6) from the rows `starts` (W,), and which of them have no gyroscope (W,).

    A window whose gyroscope is missing in part is taken as one without.
    """
    windows = samples[np.asarray(starts)[:, None] + np.arange(STEPS)]
    missing = np.isnan(windows[..., 3:]).any((1, 2))
    windows[missing, :, 3:] = np.nan
    return windows, missing


def window_labels(recording, starts, names):
    """(class ids (W,) of the windows from the rows `starts`, {label that is none of `names`: windows})."""
    if recording.labels is None or not len(starts):
        return np.full(len(starts), -1), {}
    ids, known = recording.labels
    changes = np.concatenate([[0], np.cumsum(np.diff(ids) != 0)])
    constant = changes[starts] == changes[starts + STEPS - 1]
    own = np.where(constant, ids[starts], -1)
    table = np.array([names.index(name) if name in names else -1 for name in known] + [-1])
    unknown = {name: int((own == i).sum()) for i, name in enumerate(known) if name not in names}
    return table[own], {name: count for name, count in unknown.items() if count}


# ----------------------------------------------------------------------------------------------------- tables


def activities(judged, names, abstain=None):
    """The activity of each window, (W,) names; UNSURE where the top probability is below `abstain`."""
    chosen = np.array([*names, UNSURE], dtype=object)
    which = judged.probabilities.argmax(1) if len(judged.start) else np.zeros(0, np.int64)
    if abstain is not None:
        which = np.where(metrics.kept(judged.probabilities, abstain), which, len(names)) if len(which) else which
    return chosen[which]


def columns(names):
    """The table's columns: COLUMNS and one for each class."""
    return [*COLUMNS, *(f"class {name}" if name in COLUMNS else name for name in names)]


def when(seconds, dated):
    """A moment as text: seconds with three decimals, or of a dated recording ISO 8601 in UTC."""
    if not dated:
        return f"{seconds:.3f}"
    moment = datetime(1970, 1, 1) + timedelta(milliseconds=round(1000 * float(seconds)))
    return moment.isoformat(timespec="milliseconds") + "Z"


def table(judged, names, abstain=None):
    """Rows of a Judged in the order of time: dicts of text by `columns`, one for each window and for each gap.

    A gap's activity is GAP, a stretch shorter than a window's is SHORT; neither has a confidence or probabilities.
    """
    keys, rows = columns(names), []
    found = activities(judged, names, abstain)
    for start, end, activity, p in zip(judged.start, judged.end, found, judged.probabilities, strict=True):
        values = [f"{x:.4f}" for x in (p.max(), *p)]
        rows.append((start, [judged.name, when(start, judged.dated), when(end, judged.dated), activity, *values]))
    for start, end, why in judged.gaps:
        rows.append((start, [judged.name, when(start, judged.dated), when(end, judged.dated), why]))
    empty = [""] * len(keys)
    return [dict(zip(keys, row + empty[len(row) :], strict=True)) for _, row in sorted(rows, key=lambda row: row[0])]


def minutes(judged, names, abstain=None):
    """Minutes by activity: {class: minutes, and UNSURE, SHORT and GAP where there are some}.

    Every moment goes to the window whose middle is nearest, so that the sum is what was recorded (and its gaps).
    """
    length, found = np.diff(judged.spans, axis=1)[:, 0] / 60, activities(judged, names, abstain)
    result = {name: float(length[found == name].sum()) for name in [*names, UNSURE]}
    for start, end, why in sorted(judged.gaps, key=lambda gap: gap[2] == GAP):
        result[why] = result.get(why, 0.0) + (end - start) / 60
    return {name: amount for name, amount in result.items() if amount or name in names}
