"""Writing a prepared data set: data, labels, the JSON beside them, and its entry in dataset/data_config.json.

The two .npy files cannot be replaced in one step. So the JSON says `"complete": false` before the first of them is
written and gets their fingerprints after the last: a crash in between leaves a data set that the loader refuses.
"""

import json
import os
import platform
from pathlib import Path

import numpy as np

from bookkeeping.artefacts import atomic, fingerprint, read_json, save_json, save_npy
from bookkeeping.commands import UserError
from bookkeeping.configs import find_config
from bookkeeping.locks import locked
from dataset.windows import CLASSES, VERSION, config_entry, label_array

CONFIG = Path("dataset") / "data_config.json"


def paths(name, version=VERSION):
    """(data, label, record) files of a data set, relative to the current folder."""
    folder = Path("dataset") / name
    return tuple(
        folder / f"{stem}_{version}.{end}" for stem, end in (("data", "npy"), ("label", "npy"), ("data", "json"))
    )


def save_dataset(name, windows, config, classes=CLASSES, simulated=False):
    """Write the Windows `windows` as data set `name`, and its entry; `config` is kept in the JSON: how it was made.

    An unchanged entry is not rewritten. Raises UserError if something cannot be written.
    """
    labels = label_array(windows, classes)
    there = windows.data[~np.isnan(windows.data[..., 3:]).all((1, 2))]  # windows with a gyroscope
    if not (np.isfinite(windows.data[..., :3]).all() and np.isfinite(there).all()):
        raise UserError(f"{name}: the windows hold NaN or infinity; nothing was written")
    data_path, label_path, record_path = paths(name)
    record = {
        "artefact": data_path.name,
        "fingerprint": "",
        "config": config,
        "made_from": {},
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        "complete": False,
        "simulated": simulated,
    }
    save_json(record_path, record)
    save_npy(data_path, windows.data.astype(np.float32, copy=False))
    save_npy(label_path, labels)
    record |= {
        "fingerprint": fingerprint(data_path),
        "label_fingerprint": fingerprint(label_path),
        "windows": len(labels),
        "complete": True,
    }
    save_json(record_path, record)
    entry = config_entry(windows, classes) | ({"simulated": True} if simulated else {})
    save_entry(f"{name}_{VERSION}", entry)


SAID = ("shares_users_with",)  # what windows can't tell: it stays in an entry that is written again


def save_entry(key, entry):
    """Put `entry` under `key` into dataset/data_config.json of the current folder, if it is not there as it is."""
    path = Path(os.path.realpath(CONFIG))  # a symbolic link stays one
    with locked(CONFIG.with_name(f".{CONFIG.name}.lock")):  # two at once must not undo each other's entry
        entries = read_json(find_config(CONFIG), "the data sets' configuration")
        if not isinstance(entries, dict):
            raise UserError(f"{CONFIG} must be a JSON object of data sets")
        old = entries.get(key)
        entry = entry | {k: old[k] for k in SAID if k in old} if isinstance(old, dict) else entry
        if old == entry:
            return
        with atomic(path) as handle:
            handle.write(_text(entries | {key: entry}).encode())


def _text(entries):
    """JSON with one key a line, lists of names on one line."""
    blocks = []
    for key, entry in entries.items():
        lines = entry.items() if isinstance(entry, dict) else []
        inner = ",\n".join(f"    {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in lines)
        blocks.append(
            f"  {json.dumps(key)}: {{\n{inner}\n  }}" if lines else f"  {json.dumps(key)}: {json.dumps(entry)}"
        )
    return "{\n" + ",\n".join(blocks) + "\n}\n"
