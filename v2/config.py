"""Configuration of model version v2: what keys its entries have, and how they are read and checked.

config/pretrain_model.json, base_v2: representation, physics, encoder, pretraining; config/classifier.json,
transformer_v2: training of the classifier; config/physics.json: the augmentation, each quantity with its reason. An
entry that says "like" another one gives only what differs, so that an ablation is one line.
"""

from bookkeeping.commands import UserError
from bookkeeping.configs import REQUIRED, choice, find_config, flag, inherited, read_config, real, whole
from v2.invariants import SETS
from v2.physics import KEYS

METHOD = (choice("v2"), REQUIRED)


def _numbers(test, least, what):
    return (lambda x: isinstance(x, list) and len(x) >= least and all(map(test[0], x)), f"a list of {what}")


ENCODER_KEYS = {
    "method": METHOD,
    "feature_num": (whole(6, 6), 6),
    "seq_len": (whole(16, 100000), 120),
    "channels": (choice(*SETS), "all"),
    "compression": (flag, True),
    "physics": (lambda x: isinstance(x, str), "an entry of config/physics.json"),
    "widths": (_numbers(whole(1, 4096), 1, "layer sizes"), REQUIRED),
    "kernel": (whole(1, 99), REQUIRED),
    "members": (whole(1, 100), 1),
    "masked_steps": (whole(0), 0),
    "joint_steps": (whole(0), 0),
    "batch_size": (whole(2, 100000), 64),
    "lr": (real(0, 10, strict=True), 0.003),
}
ENCODER_KEYS["physics"] = (ENCODER_KEYS["physics"], "v2")
CLASSIFIER_KEYS = {
    "method": METHOD,
    "steps": (whole(1), REQUIRED),
    "batch_size": (whole(2, 100000), REQUIRED),
    "lr": (real(0, 10, strict=True), REQUIRED),
    "weight_decay": (real(0, 1), 0.001),
    "dropout": (real(0, 0.99), REQUIRED),
    "balanced": (flag, True),
    "tempos": (_numbers(real(0.1, 10), 1, "tempos"), [1.0]),
}


def read_encoder(path, version):
    """Entry base_VERSION with its channels' names and its physics' numbers filled in."""
    config = read_config(path, ENCODER_KEYS, entry=f"base_{version}")
    if config["kernel"] % 2 == 0:
        raise UserError(f"{path}, base_{version}: 'kernel' {config['kernel']} must be odd")
    physics = read_physics(config["physics"])
    if physics["crop"] > config["seq_len"]:
        raise UserError(f"config/physics.json, {config['physics']}: 'crop' {physics['crop']} is more than a window")
    return config | {"channels": list(SETS[config["channels"]]), "physics": physics}


def read_classifier(path, version):
    """Entry transformer_VERSION."""
    return read_config(path, CLASSIFIER_KEYS, entry=f"transformer_{version}")


def _fits(form, value):
    number = lambda x: isinstance(x, (int, float)) and not isinstance(x, bool)  # noqa: E731
    if form == "range":
        pair = isinstance(value, list) and len(value) == 2 and all(map(number, value))
        return pair and 0 <= value[0] <= value[1] <= 100
    if form == "steps":
        return isinstance(value, int) and not isinstance(value, bool) and value >= 16
    return number(value) and 0 <= value <= (1 if form == "share" else 10)


def read_physics(name, path="config/physics.json"):
    """{quantity: numbers} of an entry; each stands there as {"range" | "sd" | "share" | "steps": numbers, "why": text}.

    Quantities that are left out are off. Raises UserError for an unknown one, a malformed one, one without a reason.
    """
    from bookkeeping.artefacts import read_json

    entries = read_json(find_config(path), "a JSON configuration")
    if not isinstance(entries, dict) or not isinstance(entries.get(name), dict):
        raise UserError(f"{path} has no entry {name!r}; add it, or correct 'physics' in config/pretrain_model.json")
    entry = inherited(entries, name, path)
    values = {key: off for key, (_, off) in KEYS.items()}
    for key, item in entry.items():
        if key not in KEYS:
            raise UserError(f"{path}, {name}: unknown key {key!r}; known keys: {', '.join(KEYS)}")
        form = KEYS[key][0]
        if not isinstance(item, dict) or set(item) != {form, "why"} or not str(item["why"]).strip():
            raise UserError(f'{path}, {name}: {key!r} must be {{"{form}": numbers, "why": "the reason"}}')
        if not _fits(form, item[form]) or (key == "tempo" and item[form][0] <= 0):
            raise UserError(f"{path}, {name}: {key!r} has no valid {form!r}")
        values[key] = item[form]
    return values
