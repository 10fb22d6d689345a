"""saved/results.csv: one row for every test on a target data set, and how a row is recognised again.

A row's `config_hash` tells its result apart from any other's: it is taken from the resolved configuration of all
training and from the contents of the source's and target's files, but not from file names, stems or the machine. The
same hash therefore means the same experiment, whether a shell loop or reproduce.py made it.
"""

import functools
import hashlib
import json
import os
from pathlib import Path

import numpy as np

from bookkeeping import artefacts, configs
from bookkeeping.commands import UserError, warn
from bookkeeping.configs import data_path, sets_of

PATH = "saved/results.csv"
FIRST = (
    "source",
    "target",
    "dataset_version",
    "augment_method",
    "label_rate",
    "seed",
    "windows",
    "accuracy",
    "precision_macro",
    "recall_macro",
    "f1_macro",
    "f1_micro",
)  # a table without these is another one
PRETRAIN = ("dataset", "dataset_version", "augment_method", "model_version", "train", "mask", "model")
ARRAYS = ("window", "label", "logits")  # of a file of predictions
CLASSIFY = ("label_index", "label_rate", "augment_method", "train", "model", "classes")


@functools.lru_cache
def _fingerprint(path, _changed):
    return artefacts.fingerprint(path)


def data_fingerprints(dataset, version):
    """The fingerprints of a data set's (or several sources') windows and labels, None for a file that is not here.

    A file is read once for as long as it stays as it is.
    """
    paths = [data_path(name, version, kind) for name in sets_of(dataset) for kind in ("data", "label")]
    stats = [os.stat(path) if os.path.exists(path) else None for path in paths]
    found = [s and _fingerprint(path, (s.st_mtime_ns, s.st_size)) for path, s in zip(paths, stats, strict=True)]
    units = [configs.set_entry(name, version).get("acc_unit", "m/s2") for name in sets_of(dataset)]
    return found if set(units) == {"m/s2"} else [found, units]


def training(pretrain, classifier, more=()):
    """What a pretrained model and its classifier were trained with, from the configurations in their JSON.

    `more` are fingerprints of what they started from beside the data (pretrain.py -f). A released checkpoint has no
    JSON: then `pretrain` is None, and its fingerprint in `more` stands for it. The precision is left out, like the
    device: between fp32, tf32 and bf16 the loss curves differ less than between seeds.
    """
    return {
        "pretrain": {key: pretrain.get(key) for key in PRETRAIN} if pretrain else None,
        "classifier": {key: classifier.get(key) for key in CLASSIFY},
        "started_from": sorted(more),
    }


def config_hash(trained_with, source, target, version, gyroscope=True):
    """16 hexadecimal digits that stand for a result: `trained_with` (dict) and the two data sets' contents.

    `gyroscope`: whether the target's was left to it.
    """
    whole = {
        "trained_with": trained_with,
        "source": data_fingerprints(source, version),
        "target": data_fingerprints(target, version),
    }
    whole |= {} if gyroscope else {"gyroscope": False}
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def save_test(npz, pair, settings, result, predictions, confidence=None):
    """Keep a test: the predictions in the file `npz`, then a row of scores.

    pair: (source, target, version of the data); settings: further columns (label_rate, seed, config_hash, ...); result:
    metrics.scores; predictions: (numbers of the windows (n,), labels (n,), logits (n, classes)); confidence:
    confidence_columns, the row's last, whose temperature goes to the file too (NaN for a model of probabilities): all
    that is needed to compute the row again. The row comes last: where it stands, the rest is there.
    """
    window, label, logits = predictions
    confidence = confidence or {}
    temperature = confidence.get("temperature", 1.0)
    temperature = np.nan if temperature is None else temperature
    with artefacts.atomic(npz) as handle:
        np.savez(
            handle,
            window=window,
            label=label,
            logits=logits,
            config_hash=settings["config_hash"],
            temperature=np.float64(temperature),
        )
    first = ("augment_method", "label_rate", "seed")
    row = dict(zip(("source", "target", "dataset_version"), pair, strict=True))
    row |= {key: settings[key] for key in first}
    row |= {key: round(value, 6) for key, value in result.items() if key not in ("confusion", "majority")}
    row |= {key: value for key, value in settings.items() if key not in first}
    row |= {"classes": classes(*pair[1:], settings.get("label_index", 0)), "majority": round(result["majority"], 6)}
    row |= {key: round(value, 6) if isinstance(value, float) else value for key, value in confidence.items()}
    artefacts.append_row(PATH, row, FIRST)


def shared_users(source, target, version):
    """The column that says which sources share users with the target, and a warning; {} where none does."""
    shared = configs.sharing(source, target, version)
    if not shared:
        return {}
    if target in shared:
        warn(f"{target} is the source too: windows it was trained on are among those tested")
    else:
        warn(f"{target} and {' and '.join(shared)} are of the same users: the scores are not those of new users")
    return {"shared_users": " ".join(shared)}


def source_scores(result, keys=("windows", "accuracy", "f1_macro")):
    """The columns for the scores on the source's own test part: metrics.scores or None (a released classifier)."""
    numbers = result or {}
    return {f"source_{key}": round(numbers[key], 6) if key in numbers else "" for key in keys}


def confidence_columns(found, source_test):
    """The columns for confidence: what metrics.assess found, and the errors on the source's own test part."""
    columns = {key: found[key] for key in ("temperature", "ece", "ece_uncalibrated")}
    columns |= source_scores(source_test, ("ece", "ece_uncalibrated"))
    return columns | {key: found[key] for key in ("abstain", "coverage", "accuracy_kept") if key in found}


def classes(dataset, version, label_index):
    """A target's class names in the order of its ids, as its entry has them now: walking|upstairs|..."""
    return "|".join(configs.label_names(configs.dataset_config(dataset, version), label_index)[1])


def read_rows(path=PATH):
    """The rows by config_hash, text as it stands; of several with one hash the last. No file is no rows.

    A row whose target's classes are now called or ordered differently is another experiment's, and left out; an older
    row, which does not say what they were, is taken to have those of now.
    """
    rows = artefacts.read_table(path, FIRST) if Path(path).exists() else []
    now = functools.cache(classes)

    def fits(row):
        try:
            return row.get("classes", "") in ("", now(row["target"], row["dataset_version"], int(row["label_index"])))
        except (UserError, KeyError, ValueError):  # the set or the column is no longer there
            return True

    return {row["config_hash"]: row for row in rows if row.get("config_hash") and fits(row)}


def read_predictions(npz, key):
    """(window, label, logits) of the file `npz`, or None if it is gone or belongs to another row than `key`."""
    found = read_npz(npz)
    return None if found is None or found["config_hash"] != key else tuple(found[k] for k in ARRAYS)


def read_npz(npz):
    """What save_test kept: {"window": (n,), "label": (n,), "logits": (n, K), "config_hash": text, "temperature": ...}.

    The temperature is None where the file holds probabilities, 1 where an older file has none. None without the file.
    Raises UserError for a file that is not as it was written.
    """
    if not os.path.exists(npz):
        return None
    try:
        artefacts.check_unpacks(npz)
        with np.load(npz, allow_pickle=False) as saved:
            found = {name: saved[name] for name in ARRAYS}
            found["config_hash"] = str(saved["config_hash"]) if "config_hash" in saved.files else ""
            temperature = float(saved["temperature"]) if "temperature" in saved.files else 1.0
        window, label, logits = (found[name] for name in ARRAYS)
        if window.ndim != 1 or window.shape != label.shape or logits.ndim != 2 or len(logits) != len(label):
            raise ValueError("its arrays don't go together")
        if any(part.dtype.kind not in "iu" for part in (window, label)) or not np.isfinite(logits).all():
            raise ValueError("it holds what is no number")
        if len(label) and not (window.min() >= 0 and 0 <= label.min() and label.max() < logits.shape[1]):
            raise ValueError("a window or label is out of range")
        if temperature <= 0:
            raise ValueError("its temperature is not above 0")
    except Exception as error:  # NumPy and zipfile raise anything on a malformed file
        raise UserError(f"{npz} is not a readable file of predictions ({error}); remove it and repeat") from error
    return found | {"temperature": None if np.isnan(temperature) else temperature}


def read_temperature(npz):
    """The temperature in a file of predictions that is there: None where it holds probabilities."""
    return read_npz(npz)["temperature"]
