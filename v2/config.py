"""Configuration of model version v2: what keys its entries have, and how they are read and checked.

config/pretrain_model.json, base_v2: the network; config/classifier.json, transformer_v2: its training and use;
config/physics.json: the augmentation, each quantity with its reason; config/ablations.json: further versions, what
differs from v2 in one line each.
"""

from bookkeeping.artefacts import read_json
from bookkeeping.commands import UserError
from bookkeeping.configs import REQUIRED, check_keys, choice, find_config, flag, real, resolve, whole
from v2.invariants import CHANNELS

METHOD = (choice("v2"), REQUIRED)
PHYSICS = "config/physics.json"


def listed(kind, what, least=1, most=100):
    """A list of `least` to `most` of a kind."""
    return (lambda x: isinstance(x, list) and least <= len(x) <= most and all(map(kind[0], x)), f"a list of {what}")


ENCODER_KEYS = {
    "method": METHOD,
    "feature_num": (whole(6, 6), 6),
    "seq_len": (whole(32, 100000), 120),
    "channels": (listed(choice(*CHANNELS), "channels of v2/invariants.py"), list(CHANNELS)),
    "spectrum": (flag, True),
    "widths": (listed(whole(1, 4096), "layer sizes"), REQUIRED),
    "kernel": (whole(1, 99), REQUIRED),
    "members": (whole(1, 100), REQUIRED),
    "dropout": (real(0, 0.99), REQUIRED),
}
CLASSIFIER_KEYS = {
    "method": METHOD,
    "steps": (whole(1), REQUIRED),
    "batch_size": (whole(2, 100000), REQUIRED),
    "lr": (real(0, 10, strict=True), REQUIRED),
    "own_labels": (flag, True),
}
SHARE, LENGTH = real(0, 1), real(0, 10)
PHYSICS_KEYS = {
    "tempo": (listed(real(0.5, 2), "two tempos from 0.5 up to 2", 2, 2), REQUIRED),
    "moved": (SHARE, REQUIRED),
    "swing": (LENGTH, REQUIRED),
    "lever": (LENGTH, REQUIRED),
    "no_gyroscope": (SHARE, REQUIRED),
}


def read_entry(path, prefix, version, part, keys):
    """An entry PREFIX_VERSION of a file, of an ablation v2's with the changes to `part` over it."""
    version, changes = resolve(version)
    entries = read_json(find_config(path), "a JSON configuration")
    name = f"{prefix}_{version}"
    if not isinstance(entries, dict) or not isinstance(entries.get(name), dict):
        raise UserError(f"{path} has no entry {name!r}; add it, or choose another with -mv")
    return check_keys(entries[name] | changes.get(part, {}), keys, f"{path}, {name}")


def read_encoder(path, version):
    """Entry base_VERSION, with the physics that its windows are altered by."""
    config = read_entry(path, "base", version, "encoder", ENCODER_KEYS)
    if config["kernel"] % 2 == 0:
        raise UserError(f"{path}, base_{version}: 'kernel' {config['kernel']} must be odd")
    return config | {"physics": read_physics(resolve(version)[1].get("physics", {}))}


def read_classifier(path, version):
    """Entry transformer_VERSION over the network's, which is trained with it: all that a classifier depends on."""
    training = read_entry(path, "transformer", version, "classifier", CLASSIFIER_KEYS)
    return read_encoder("config/pretrain_model.json", version) | training


def read_physics(changes):
    """{quantity: value} of config/physics.json, where each stands as {"value": numbers, "why": the reason}."""
    entries = read_json(find_config(PHYSICS), "a JSON configuration")
    for key, item in entries.items() if isinstance(entries, dict) else [("all of it", None)]:
        if not isinstance(item, dict) or set(item) != {"value", "why"} or not str(item["why"]).strip():
            raise UserError(f'{PHYSICS}: {key!r} must be {{"value": numbers, "why": "the reason"}}')
    values = {key: item["value"] for key, item in entries.items()}
    config = check_keys(values | changes, PHYSICS_KEYS, PHYSICS)
    if config["tempo"][0] > config["tempo"][1]:
        raise UserError(f"{PHYSICS}: 'tempo' is {config['tempo']}, but must be the slowest and the fastest")
    return config
