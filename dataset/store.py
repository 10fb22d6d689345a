"""Writing a prepared data set: data, labels, the JSON beside them, and its entry with what the checks found.

The two .npy files cannot be replaced in one step. So the JSON says `"complete": false` before the first of them is
written and gets their fingerprints after the last: a crash in between leaves a data set that the loader refuses.

dataset/NAME/entry.json holds an own set's entry, of a built-in set what differs from that in dataset/data_config.json,
which is never written; under "checks" which windows were checked, what was found and whether the user accepted that.
"""

import contextlib
import os
import platform
from pathlib import Path

import numpy as np

from bookkeeping.artefacts import fingerprint, save_json, save_npy
from bookkeeping.commands import UserError
from bookkeeping.configs import DATA_CONFIG, PREPARED, dataset_entries, entry_path, own_entries
from bookkeeping.locks import locked
from dataset.windows import CLASSES, VERSION, config_entry, label_array

SAID = ("shares_users_with",)  # what windows can't tell: it stays in an entry that is written again
UNCHECKED = "its checks did not come to an end"


def paths(name, version=VERSION):
    """(data, label, record) files of a data set, relative to the current folder."""
    folder = Path("dataset") / name
    return tuple(
        folder / f"{stem}_{version}.{end}" for stem, end in (("data", "npy"), ("label", "npy"), ("data", "json"))
    )


def refuse_taken(name):
    """Raise UserError where dataset/data_config.json describes an own set that is about to get its entry.json."""
    if name not in PREPARED and (key := f"{name}_{VERSION}") in dataset_entries():
        raise UserError(
            f"{DATA_CONFIG} has an entry {key}, which belongs in {entry_path(name)} for a set that is prepared: "
            "move it there (shares_users_with too), or choose another name"
        )


def save_dataset(name, windows, config, classes=CLASSES, simulated=False):
    """Write the Windows `windows` as data set `name`, and its entry; `config` is kept in the JSON: how it was made.

    Raises UserError if something cannot be written.
    """
    labels = label_array(windows, classes)
    entry = config_entry(windows, classes) | ({"simulated": True} if simulated else {})
    seen = ~np.isnan(windows.data[..., 3:]).all((1, 2))  # with a gyroscope
    if not (np.isfinite(windows.data[..., :3]).all() and np.isfinite(windows.data[seen, :, 3:]).all()):
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
    with lock(name):
        entries = own_entries(name)
        save_json(record_path, record)
        save_npy(data_path, windows.data.astype(np.float32, copy=False))
        save_npy(label_path, labels)
        made = {"fingerprint": fingerprint(data_path), "label_fingerprint": fingerprint(label_path)}
        old, tracked = entries.get(VERSION, {}), dataset_entries().get(f"{name}_{VERSION}")
        if name in PREPARED and isinstance(tracked, dict):
            entry = {key: value for key, value in entry.items() if key not in tracked or tracked[key] != value}
        entry |= {key: old[key] for key in SAID if key in old}
        checks = old.get("checks", {})
        if not made.items() <= checks.items():  # other windows than those that somebody may have accepted
            checks = made | {"problems": [UNCHECKED], "accepted": False}
        write_entries(name, entries | {VERSION: entry | {"checks": checks}})  # before anybody can use the windows
        save_json(record_path, record | made | {"windows": len(labels), "complete": True})


def lock(name):
    """Around whatever changes a set or relies on its staying as it is: two runs at once take turns."""
    return locked(entry_path(name).with_name(".entry.json.lock"))


def write_entries(name, entries):
    """Write a set's entry.json, if that changes it; a symbolic link stays one."""
    if entries != own_entries(name):
        save_json(os.path.realpath(entry_path(name)), entries)


@contextlib.contextmanager
def changing(name):
    """A set's entry.json as a dict to change, written when the block ends well."""
    with lock(name):
        entries = own_entries(name)
        yield entries
        write_entries(name, entries)


def checked(name, check):
    """The Report of check(name), kept in the set's entry.json, and whether it is accepted; None: it is not kept.

    Problems that were accepted stay so for as long as the same ones are found in the same windows.
    """
    if not (entry_path(name).is_file() and os.access(entry_path(name).parent, os.W_OK)):
        return check(name), None
    with changing(name) as entries:
        report, old = check(name), entries.get(VERSION, {}).get("checks")
        if old is None:
            return report, None
        data_path, label_path, _ = paths(name)
        new = {"fingerprint": fingerprint(data_path), "label_fingerprint": fingerprint(label_path)}
        new |= {"problems": report.problems, "accepted": False}
        if old | {"accepted": False} != new:
            entries[VERSION]["checks"] = old = new
        return report, old["accepted"]


def accept(name):
    """Take a set with the problems that its checks found: returns them. Raises UserError where there are none."""
    data_path, _, _ = paths(name)
    if not data_path.is_file() or not entry_path(name).is_file():
        raise UserError(f"--accept {name}: {data_path} or {entry_path(name)} is missing; there is nothing to accept")
    with changing(name) as entries:
        checks = entries.get(VERSION, {}).get("checks")
        if not checks or checks["fingerprint"] != fingerprint(data_path) or checks["problems"] == [UNCHECKED]:
            look = f"look first: python dataset/prepare.py --check {name}"
            raise UserError(f"--accept {name}: no checks of these windows are known; {look}")
        if not checks["problems"]:
            raise UserError(f"--accept {name}: its checks found no problem; it is used as it is")
        checks["accepted"] = True
        return checks["problems"]
