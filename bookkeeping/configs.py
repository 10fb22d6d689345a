"""Configurations: which keys each file may hold, and reading one with every key checked; the data sets' entries.

Version v2 has its own keys in v2/config.py. What dataset/ knows too stands here again (GRAVITY, PREPARED): prepare.py
must answer --help without torch, which comes with artefacts.
"""

import difflib
import json
import os
from pathlib import Path

from bookkeeping.artefacts import fits, read_json
from bookkeeping.commands import AUGMENTATION, UserError, again, warn

HERE = Path(__file__).resolve().parents[1]
REQUIRED = object()
GRAVITY = 9.80665  # m/s^2 in one g, exact by definition
ACC_UNITS = {"m/s2": 1.0, "g": GRAVITY, "mg": GRAVITY / 1000}
PREPARED = {name: name for name in ("uci", "motion", "shoaib", "hhar", "dsads", "uschad", "sim")} | {"uci20": "sim"}
DATA_CONFIG = "dataset/data_config.json"
CHECKS = {"fingerprint": str, "label_fingerprint": str, "problems": [str], "accepted": bool}
ENTRY = {"checks?": CHECKS}  # the form of an entry in an entry.json; label_names and others look at the rest
READERS = {}  # method of a model version: (reader of its encoder's entry, of its classifier's); v2/ adds its own


def whole(low, high=2**31):
    """What is wanted of a whole number in [low, high]: (test, its words), as for every kind here."""

    def test(x):
        return isinstance(x, int) and not isinstance(x, bool) and low <= x <= high

    return test, f"a whole number from {low} to {high}"


def real(low, high, strict=False):
    """A number in [low, high], or in (low, high] if `strict`; NaN is in neither."""

    def test(x):
        number = isinstance(x, (int, float)) and not isinstance(x, bool)
        return number and (low < x if strict else low <= x) and x <= high

    return test, f"a number {'above' if strict else 'from'} {low} up to {high}"


def choice(*values):
    """One of some words."""
    return (lambda x: isinstance(x, str) and x in values, "one of " + ", ".join(values))


flag = (lambda x: isinstance(x, bool), "true or false")

# key: ((test, what is wanted), default)
TRAIN_KEYS = {
    "seed": (whole(0, 2**32 - 1), REQUIRED),
    "batch_size": (whole(2), REQUIRED),
    "lr": (real(0, 10, strict=True), REQUIRED),
    "n_epochs": (whole(1), REQUIRED),
    "total_steps": (whole(0), 0),  # 0: no limit
    "split_by": (choice("window", "copy"), "window"),
}
PRETRAIN_KEYS = TRAIN_KEYS | {
    "n_epochs_cl": (whole(0), None),  # None: the second half
    "lambda1": (real(0, 1000), 6),
    "lambda2": (real(0, 1000), 1),
    "views": (choice("once", "epoch"), "once"),
}
MASK_KEYS = {
    "mask_ratio": (real(0, 0.9, strict=True), REQUIRED),
    "max_gram": (whole(1, 1000), REQUIRED),
    "mask_prob": (real(0, 1), REQUIRED),
    "replace_prob": (real(0, 1), 0.0),
}
ENCODER_KEYS = {
    "feature_num": (whole(1, 1000), REQUIRED),
    "hidden": (whole(1, 10000), REQUIRED),
    "hidden_ff": (whole(1, 100000), REQUIRED),
    "n_layers": (whole(1, 100), REQUIRED),
    "n_heads": (whole(1, 1000), REQUIRED),
    "seq_len": (whole(2, 100000), REQUIRED),
    "emb_norm": (flag, True),
}
CLASSIFIER_KEYS = {
    "input_size": (whole(1, 10000), REQUIRED),
    "hidden_size": (whole(2, 10000), REQUIRED),
    "num_layers": (whole(1, 100), REQUIRED),
    "num_heads": (whole(1, 1000), REQUIRED),
    "dropout_ratio": (real(0, 0.99), REQUIRED),
    "dim_feedforward": (whole(1, 100000), REQUIRED),
}
V2_TRAIN_KEYS = ("seed", "split_by", "total_steps", "lambda1", "lambda2")  # what -mv v2 reads of them
DEAD_KEYS = ("warmup", "save_steps", "batch_size_finetune")  # in the released configs, without effect there
DEAD_CLASSIFIER_KEYS = (*DEAD_KEYS, "lambda1", "lambda2", "n_epochs_cl")


def find_config(path):
    """`path` from the current folder, else from the folder of the scripts. Raises UserError if it is in neither."""
    for candidate in (Path(path), HERE / path):
        if os.path.isfile(candidate):
            return candidate
    raise UserError(f"{path} is missing: give the path of an existing file, or run from the project's folder")


def resolve(version):
    """What -mv VERSION means: (version whose entries are read, {part: {key: value}} that differ from them).

    Those of an ablation stand in config/ablations.json, over version v2's; any other version is itself.
    """
    path = "config/ablations.json"
    entries = read_json(find_config(path), "a JSON configuration")
    if not isinstance(entries, dict) or version not in entries:
        return version, {}
    changes = entries[version]
    parts = ("encoder", "classifier", "physics")
    if not isinstance(changes, dict) or not all(p in parts and isinstance(changes[p], dict) for p in changes):
        raise UserError(f"{path}, {version}: must be an object of objects, each named one of {', '.join(parts)}")
    return "v2", changes


def read_config(path, keys, dead=(), entry=None):
    """Read a JSON configuration and check every key against `keys`; the defaults fill what is left out.

    `entry` picks one object of the file (`base_v1`). Keys in `dead` are named in one warning and dropped.
    Raises UserError that names the file, the key, and for an unknown key the nearest known one.
    """
    config = read_json(find_config(path), "a JSON configuration")
    if entry is None:
        return check_keys(config, keys, str(path), dead)
    if not isinstance(config, dict) or entry not in config:
        there = ", ".join(config) if isinstance(config, dict) else "none"
        raise UserError(f"{path} has no entry {entry!r} (there: {there}); add it, or choose another with -mv")
    return check_keys(config[entry], keys, f"{path}, {entry}", dead)


def check_keys(config, keys, where, dead=()):
    """A configuration with every key checked and the defaults filled in, as read_config says; `where` names it."""
    if not isinstance(config, dict):
        raise UserError(f"{where} must be a JSON object of keys and values")
    ignored = [key for key in config if key in dead]
    if ignored:
        warn(f"{where}: {', '.join(ignored)} {'does' if len(ignored) == 1 else 'do'} nothing here")
    result = {}
    for key in config:
        if key not in keys and key not in dead:
            near = difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(keys)}"
            raise UserError(f"{where}: unknown key {key!r}; {hint}")
    for key, ((test, wanted), default) in keys.items():
        if key not in config and default is REQUIRED:
            raise UserError(f"{where}: key {key!r} is missing; add it ({wanted})")
        result[key] = config.get(key, default)
        if key in config and not test(result[key]):
            raise UserError(f"{where}: {key!r} is {json.dumps(result[key])[:80]}, but must be {wanted}")
    return result


def read_train_config(args):
    """The training configuration of -t with --seed applied; pretraining's if the script's default is pretrain.json."""
    path = args.train_cfg or args.default_train_cfg
    pretraining = args.default_train_cfg == "config/pretrain.json"
    keys, dead = (PRETRAIN_KEYS, DEAD_KEYS) if pretraining else (TRAIN_KEYS, DEAD_CLASSIFIER_KEYS)
    config = read_config(path, keys, dead)
    if pretraining:
        if config["n_epochs_cl"] is None:
            config["n_epochs_cl"] = config["n_epochs"] - config["n_epochs"] // 2
        if config["n_epochs_cl"] > config["n_epochs"]:
            raise UserError(f"{path}: 'n_epochs_cl' {config['n_epochs_cl']} is more than n_epochs {config['n_epochs']}")
    if args.seed is not None:
        config["seed"] = args.seed
    if method_of(args.model_version) == "v2":  # whose epochs, batches and rates stand with its networks
        config = {key: config[key] for key in config if key in V2_TRAIN_KEYS}
    return config


def read_pretraining(args):
    """All that a pretrained model depends on, as its JSON keeps it: data set, augmentation, -t, -a and -mv, checked."""
    return {
        "dataset": args.dataset,
        "dataset_version": args.dataset_version,
        "augment_method": args.augument_method or AUGMENTATION,
        "model_version": args.model_version,
        "train": read_train_config(args),
        "mask": read_config(args.mask_cfg, MASK_KEYS, dead=("mask_alpha",)),
        "model": read_encoder_config(args.model_version),
    }


def method_of(version):
    """The code behind -mv VERSION: the key "method" of its entry in config/pretrain_model.json, "v1" without one."""
    path = "config/pretrain_model.json"
    entries = read_json(find_config(path), "a JSON configuration")
    entry = entries.get(f"base_{resolve(version)[0]}") if isinstance(entries, dict) else None
    return entry.get("method", "v1") if isinstance(entry, dict) else "v1"  # read_encoder_config says what is wrong


def refuse_v2(args):
    """Raise UserError for -mv v2 where a model is pretrained or its representation asked for: v2 has neither."""
    if method_of(args.model_version) == "v2":
        then = again("classifier", vars(args) | {"model_file": None, "augument_method": None})
        raise UserError(f"-mv {args.model_version} learns from labels alone; go on with: {then}")


def read_encoder_config(version):
    """Entry base_VERSION of config/pretrain_model.json."""
    path = "config/pretrain_model.json"
    if readers := READERS.get(method_of(version)):
        return readers[0](path, version)
    config = read_config(path, ENCODER_KEYS, entry=f"base_{version}")
    if config["hidden"] % config["n_heads"]:
        raise UserError(f"{path}, base_{version}: 'hidden' {config['hidden']} is no multiple of n_heads")
    return config


def read_classifier_config(version):
    """Entry transformer_VERSION of config/classifier.json."""
    path = "config/classifier.json"
    if readers := READERS.get(method_of(version)):
        return readers[1](path, version)
    config = read_config(path, CLASSIFIER_KEYS, entry=f"transformer_{version}")
    if config["hidden_size"] % config["num_heads"] or config["hidden_size"] % 2:
        raise UserError(f"{path}: 'hidden_size' {config['hidden_size']} must be even and a multiple of num_heads")
    return config


def parse(parser, argv):
    """A script's flags, the sources of -d in their canonical order."""
    args = parser.parse_args(argv)
    args.dataset = in_order(args.dataset, args.dataset_version)
    return args


def in_order(source, version):
    """Several sources (motion+uci) in the order of data_config.json, then alphabetical; one as it is."""
    names = sets_of(source)
    order = list(dataset_entries()) if len(names) > 1 else []
    place = {name: order.index(f"{name}_{version}") if f"{name}_{version}" in order else len(order) for name in names}
    return "+".join(sorted(names, key=lambda name: (place[name], name)))


def sets_of(dataset):
    """The data sets that -d names: ("uci", "motion") of uci+motion."""
    return tuple(dataset.split("+"))


def data_path(dataset, version, kind="data"):
    """dataset/uci/data_20_120.npy, or the labels' with the kind "label"."""
    return Path("dataset") / dataset / f"{kind}_{version}.npy"


def how_to_make(dataset, version):
    """What to do about windows that are missing or malformed, for messages."""
    if version != "20_120":
        return f"dataset/prepare.py makes 20_120, not {version}: put your own there, or choose another -dv"
    if dataset in PREPARED:
        return f"make it with: python dataset/prepare.py -d {PREPARED[dataset]}"
    return f"put it there, or make it with: python dataset/prepare.py -d {dataset} --raw FOLDER --recordings FILE.json"


def dataset_entries():
    """What dataset/data_config.json holds: entries by NAME_VERSION."""
    entries = read_json(find_config(DATA_CONFIG), "the data sets' configuration")
    return entries if isinstance(entries, dict) else {}


def entry_path(name):
    """dataset/mine/entry.json: an own set's entry, and what the checks found in any."""
    return Path("dataset") / name / "entry.json"


def own_entries(name):
    """What a set's entry.json holds: entries by version ("20_120"). Raises UserError where it is malformed."""
    path = entry_path(name)
    entries = read_json(path, "a data set's entry") if path.exists() else {}
    if not fits(entries, {"*": ENTRY}):
        raise UserError(f"{path} must be an object of entries by version, as dataset/prepare.py writes it; mend it")
    return entries


def own_sets(version):
    """The names of the sets that have an entry.json with this version, in alphabetical order."""
    names = sorted(path.parent.name for path in Path("dataset").glob("*/entry.json"))
    return [name for name in names if version in own_entries(name)]


def set_entry(name, version):
    """A set's entry, {} where there is none: that of data_config.json or of its entry.json, which "file" names.

    A built-in set's entry.json holds only what differs. Raises UserError where both describe any other set.
    """
    path, tracked = entry_path(name), dataset_entries().get(f"{name}_{version}")
    own = own_entries(name).get(version)
    if own is None or name in PREPARED:
        own = own or {}
        return tracked | own | {"file": DATA_CONFIG} if isinstance(tracked, dict) else own and own | {"file": str(path)}
    if tracked is not None:
        raise UserError(f"{DATA_CONFIG} and {path} both have an entry of {name}_{version}: remove one of the two")
    return own | {"file": str(path)}


def dataset_config(dataset, version):
    """The data set's entry (set_entry); of several (uci+motion) one that describes them together.

    Raises UserError that lists those there.
    """
    found = {name: set_entry(name, version) for name in sets_of(dataset)}
    for name, entry in found.items():
        key = f"{name}_{version}"
        if not entry:
            there = dict.fromkeys([*dataset_entries(), *(f"{own}_{version}" for own in own_sets(version))])
            raise UserError(
                f"{DATA_CONFIG} has no entry {key!r} (there: {', '.join(there) or 'none'}), nor is there "
                f"{entry_path(name)} with {version!r}; check -d, -td and -dv"
            )
        rate, said = version.split("_")[0], entry.get("sr")
        if rate.isdecimal() and said is not None and said != int(rate):
            raise UserError(f"{entry['file']}, {key}: 'sr' is {said}, but the name says {rate} Hz; correct one of them")
    return found[dataset] if len(found) == 1 else together(found, version)


def acc_unit(entry, name):
    """What a set's acceleration is multiplied with to be in m/s^2, by its entry's "acc_unit". Raises UserError."""
    unit = entry.get("acc_unit", "m/s2")
    if not isinstance(unit, str) or unit not in ACC_UNITS:
        where = entry.get("file", DATA_CONFIG)
        raise UserError(f"{where}, {name}: 'acc_unit' must be one of {', '.join(ACC_UNITS)}")
    return ACC_UNITS[unit]


def sharing(source, target, version):
    """The sources that share users with the target: it is one of them, or an entry's "shares_users_with" says so.

    Of the project's own sets its own data_config.json says it where another one that is in use does not.
    """
    path = HERE / DATA_CONFIG
    known = read_json(path, "the data sets' configuration") if path.is_file() else {}

    def said(name):
        found = [set_entry(name, version), known.get(f"{name}_{version}")]
        said = next((e["shares_users_with"] for e in found if isinstance(e, dict) and "shares_users_with" in e), [])
        if not isinstance(said, list):
            where = found[0].get("file", DATA_CONFIG)
            raise UserError(f"{where}, {name}_{version}: 'shares_users_with' must be a list of names")
        return said

    return [name for name in sets_of(source) if name == target or target in said(name) or name in said(target)]


def together(entries, version):
    """One entry for several sets: the label columns that all have, by name, each with the union of their names."""
    first, *others = entries.values()
    for key in ("sr", "seq_len", "dimension"):
        if any(entry.get(key) != first.get(key) for entry in others):
            there = ", ".join(f"{entry.get(key)} ({name})" for name, entry in entries.items())
            raise UserError(f"{key!r} differs between the sources: {there}; choose others")
    result = {key: first.get(key) for key in ("sr", "seq_len", "dimension")} | {"version": version}
    result |= {"simulated": True} if any(entry.get("simulated") for entry in entries.values()) else {}
    result |= {"gyroscope": False} if any(entry.get("gyroscope") is False for entry in entries.values()) else {}
    shared = [column for column in label_columns(first) if all(column in label_columns(entry) for entry in others)]
    for index, column in enumerate(shared):
        names = {name: label_names(entry, label_columns(entry)[column])[1] for name, entry in entries.items()}
        union = dict.fromkeys(joined_name(name, column, word) for name, words in names.items() for word in words)
        result |= {f"{column}_label_index": index, f"{column}_label_size": len(union), f"{column}_label": list(union)}
    return result


def joined_name(dataset, column, word):
    """An id's name among several sets': the same word is the same activity or place, but never the same person."""
    return f"{dataset} {word}" if column == "user" else word


def label_columns(config):
    """{name: index} of an entry's label columns, by index."""
    columns = {key.removesuffix("_label_index"): config[key] for key in config if key.endswith("_label_index")}
    columns = {name: index for name, index in columns.items() if isinstance(index, int) and index != -1}
    return dict(sorted(columns.items(), key=lambda item: item[1]))


def described(config):
    """What an entry's label columns are: {name: {"index": column, "names": of its ids}}."""
    return {name: {"index": i, "names": label_names(config, i)[1]} for name, i in label_columns(config).items()}


def label_names(config, index):
    """What label column `index` is, and the names of its ids: ("activity", ["walking", ...])."""
    where = config.get("file", DATA_CONFIG)
    columns = {i: name for name, i in label_columns(config).items()}
    if index not in columns:
        there = ", ".join(f"{i} ({name})" for i, name in columns.items())
        raise UserError(f"-l {index}: {where} describes no such label column; columns: {there}")
    name = columns[index]
    size, names = config.get(f"{name}_label_size"), config.get(f"{name}_label")
    if not whole(1, 10000)[0](size) or not isinstance(names, list | None) or (names and len(names) != size):
        raise UserError(f"{where}: {name}_label_size must be the number of ids, and {name}_label name each of them")
    if names and len(set(map(str, names))) < size:
        raise UserError(f"{where}: {name}_label has a name twice; every id needs its own")
    return name, [str(n) for n in names] if names else [f"{name} {i}" for i in range(size)]


def check_gyroscope(data_cfg):
    """Raise UserError for a data set without gyroscope, whose rotation rate is NaN."""
    if data_cfg.get("gyroscope") is False:
        raise UserError("'gyroscope' is false in the data set's entry, and only -mv v2 can do without; choose that one")


def check_fits(model_cfg, data_cfg, mask_cfg=None):
    """Raise UserError unless the encoder's configuration fits the data set's (and the masks fit its windows)."""
    for key, of_data in (("feature_num", "dimension"), ("seq_len", "seq_len")):
        if model_cfg[key] != data_cfg.get(of_data):
            raise UserError(
                f"config/pretrain_model.json: {key!r} is {model_cfg[key]}, but the data set's entry says that "
                f"{of_data!r} is {data_cfg.get(of_data)}; choose another -mv or -dv"
            )
    if model_cfg.get("method") != "v2":
        check_gyroscope(data_cfg)
    if model_cfg.get("method") == "v2" and data_cfg.get("sr") != 20:
        has = f"its windows must have 20 Hz ('sr' in the data set's entry), not {data_cfg.get('sr')}"
        raise UserError(f"version v2 knows movement by its speed: {has}; resample them, or choose -mv v1")
    if mask_cfg and round(mask_cfg["mask_ratio"] * model_cfg["seq_len"]) >= model_cfg["seq_len"]:
        raise UserError("config/mask.json: 'mask_ratio' leaves no step unmasked; lower it")
