"""One stem holds one finished artefact, which one run at a time may replace."""

import contextlib
import json
import os
from pathlib import Path

from bookkeeping.artefacts import differing, fingerprint, read_json, record_path
from bookkeeping.commands import UserError
from bookkeeping.locks import locked

KEPT = ("dataset", "dataset_version", "label_index", "classes")  # what a run of the same stem may not change


@contextlib.contextmanager
def replacing(path, config, restart=False, first=True):
    """Around a run that makes the artefact `path` with `config`: it alone does, and says what it changes.

    Of several processes that train together only the `first` asks. Raises UserError where another run is at it, and,
    unless `restart`, where the artefact that is there has other labels.
    """
    if not first:
        yield
        return
    path = Path(path)
    busy = f"{path} is being made by another run; wait for that one, or choose another -s"
    with locked(path.with_name(f".{path.name}.lock"), busy):
        if told := changed(path, json.loads(json.dumps(config)), restart):
            print(f"replacing {told}")
        yield


def changed(path, config, restart):
    """What a run with `config` changes in the artefact `path`, as a line; "" for nothing. Raises UserError."""
    if not os.path.exists(path) and not record_path(path).exists():
        return ""
    try:
        record = read_json(record_path(path), "the JSON that goes with an artefact")
        old, parents = dict(record["config"]), dict(record["made_from"])
    except (UserError, TypeError, KeyError, ValueError):
        return f"{path}, of which no JSON says how it was made"
    shared = {key: config[key] for key in KEPT if key in config and key in old}
    if (other := differing({key: old[key] for key in shared}, shared)) and not restart:
        raise UserError(f"{path} was made for other labels: {', '.join(other)}; choose another -s, or give --restart")
    keys = differing(old, config)
    keys += [f"{p} (another one now)" for p, was in parents.items() if os.path.isfile(p) and fingerprint(p) != was]
    return f"{path}: {', '.join(keys)}" if keys else ""
