"""Stage 3: the source's classifier on all windows of a target data set that it has never seen.

    python cross_dataset_test.py -d uci -td hhar

reads   saved/pretrain_base_uci_20_120/model_masked_6_1.pt, saved/classifier_base_transformer_uci_20_120/
        model_transformer.pt, dataset/hhar/{data,label}_20_120.npy
writes  one row to saved/results.csv, and the predictions beside the classifier (model_transformer_hhar.npz)

Nothing of the target is used for anything but these scores. Settings come from the artefacts' JSON, the
temperature that calibrates the confidence too. --abstain 0.9 also prints how well the windows of at least that do.
"""

import sys

import numpy as np
import torch

import fast
import inference
import metrics
import utils
from bookkeeping import artefacts, configs, ledger
from bookkeeping.commands import AUGMENTATION, LABEL_RATE, UserError, add_abstain, make_parser, run, warn


def get_args(argv=None):
    parser = make_parser(__doc__, train_cfg="config/train.json")
    add_abstain(parser)
    parser.add_argument("--no_gyroscope", action="store_true", help="take the target's gyroscope away (-mv v2)")
    return configs.parse(parser, argv)


def load_target(args, column, names):
    """The target's windows (N, T, C), the rows (n,) that have one label, those labels (n,), its entry; checked."""
    target, version, sources = args.target_dataset, args.dataset_version, utils.sets_of(args.dataset)
    if len(sources) > 1 and target in sources:
        raise UserError(f"-td {target} is one of the sources {', '.join(sources)}; choose another")
    data, labels, entry = utils.load_windows(target, version)
    found, found_names = configs.label_names(entry, args.label_index)
    path = utils.data_path(target, version, "label")
    ids = utils.in_classes(utils.window_labels(labels, args.label_index, found_names, path), found_names, names)
    if found != column or ids is None:
        there = f"{found} ({', '.join(found_names)}) in {target}"
        raise UserError(
            f"-l {args.label_index} is {column} ({', '.join(names)}) in {args.dataset}, but {there}; "
            "their entries must name the same classes"
        )
    rows = np.flatnonzero(ids >= 0)  # a window whose label changes within it has none
    if len(rows) == 0:
        raise UserError(f"{path}: no window has one label throughout; nothing to test on")
    if len(rows) < len(ids):
        warn(f"{len(ids) - len(rows)} windows of {target} change their label and are left out")
    if absent := [name for i, name in enumerate(names) if i not in ids[rows]]:
        warn(f"{target} has no window of {', '.join(absent)}: 0 in the macro means")
    return data, rows, ids[rows], entry


def settings(args, path, record):
    """What the artefacts' JSON says of the run, checked against the flags; for a released classifier the flags."""
    config = record["config"] if record else {}
    cfg = configs.read_train_config(args)
    embedding = config.get("embedding", {})
    pretrain = embedding.get("pretrain", {})
    recorded = config.get("train", {})
    if record and args.train_cfg:
        same = {key: cfg[key] for key in cfg if key != "seed"}
        artefacts.check_same(f"{path}, which -t {args.train_cfg} contradicts,", recorded, same)
    if record and config["label_index"] != args.label_index:
        raise UserError(f"-l {args.label_index} contradicts {path}, made with -l {config['label_index']}")
    default = configs.read_config("config/pretrain.json", configs.PRETRAIN_KEYS, configs.DEAD_KEYS)
    method, rate = config.get("augment_method"), config.get("label_rate")
    return {
        "augment_method": artefacts.agreed("-am", args.augument_method, method, path, AUGMENTATION),
        "label_rate": artefacts.agreed("-lr", args.label_rate, rate, path, LABEL_RATE),
        "seed": artefacts.agreed("--seed", args.seed, recorded.get("seed"), path, cfg["seed"]),
        "pretrain_seed": pretrain.get("seed", ""),
        "epochs": embedding.get("epochs") or "",
        "split_by": recorded.get("split_by", cfg["split_by"]),
        "label_index": args.label_index,
        "model_version": args.model_version,
        "save_model": args.save_model,
        "loss_weights": utils.loss_weights(default | pretrain),
    }


def hash_of(args, files, row, names, record, checkpoint):
    """The row's config_hash, from the artefacts' JSON; a released file's contents stand for its configuration."""
    pretrained = checkpoint and artefacts.load_record(checkpoint)
    parents = pretrained["made_from"] if pretrained else {}
    if checkpoint and not pretrained:
        parents = {str(checkpoint): artefacts.fingerprint(checkpoint)}
    more = [was for parent, was in parents.items() if parent not in map(str, files.data())]
    classifier = record["config"] if record else row | {"classes": names}
    if not record:
        more.append(artefacts.fingerprint(files.classifier()))
    trained_with = ledger.training(pretrained and pretrained["config"], classifier, more)
    gyroscope = not args.no_gyroscope
    return ledger.config_hash(trained_with, args.dataset, args.target_dataset, args.dataset_version, gyroscope)


def load_source(args, engine, files, cfgs, names, record):
    """What was trained on the source: (raw windows -> logits, temperature, the row's settings, the encoder's file)."""
    path, again = files.classifier(), inference.again_of(vars(args))
    is_v1 = configs.method_of(args.model_version) == "v1"
    row, temperature = settings(args, path, record), inference.recorded_temperature(path, record)
    if temperature is None:
        print(f"temperature 1: none is recorded beside {path} (a released classifier, or one of an older version)")
    if record:
        artefacts.check_same(path, record["config"], {"model": cfgs[1], "dataset": args.dataset})
    weights = row.pop("loss_weights")
    row |= dict(zip(("lambda1", "lambda2"), weights.split("_"), strict=True))
    checkpoint = files.checkpoint(weights) if is_v1 else None  # v2 is not pretrained
    logits_of = inference.load_networks(files, engine, checkpoint, cfgs, names, vars(args))
    if record:
        inference.check_made_from(path, record, checkpoint, cfgs[0], again)
    return logits_of, temperature or 1.0, row, checkpoint


def main(args):
    cfgs = configs.read_encoder_config(args.model_version), configs.read_classifier_config(args.model_version)
    is_v1 = configs.method_of(args.model_version) == "v1"
    if is_v1 and args.no_gyroscope:
        raise UserError(f"--no_gyroscope: -mv {args.model_version} needs one; take -mv v2")
    engine = fast.engine(args.gpu, args.deterministic, encoder=cfgs[0] if is_v1 else None)
    source_cfg = configs.dataset_config(args.dataset, args.dataset_version)
    column, names = configs.label_names(source_cfg, args.label_index)
    ledger.read_rows()  # refuses a table that is another
    if args.dataset != args.target_dataset:  # whose windows are loaded below
        utils.check_accepted(args.dataset, args.dataset_version)
    files = utils.Files(args.dataset, args.dataset_version, args.model_version, args.save_model, source=args.model_file)
    record = artefacts.load_record(files.classifier(), inference.RECORD)
    if record and record["config"]["label_index"] == args.label_index:
        names = record["config"]["classes"]  # in the order that it was trained with
    data, rows, ids, target_cfg = load_target(args, column, names)
    configs.check_fits(cfgs[0], target_cfg)
    utils.check_gravity(args.target_dataset, args.dataset_version, data, refuse=not is_v1)
    logits_of, temperature, row, checkpoint = load_source(args, engine, files, cfgs, names, record)

    windows = torch.tensor(np.asarray(data[rows], dtype=np.float32))
    if args.no_gyroscope:
        windows[:, :, 3:] = torch.nan
    logits = logits_of(windows).numpy()
    result = metrics.scores(ids, logits.argmax(1), len(names))
    target = args.target_dataset + (" (simulated)" if target_cfg.get("simulated") else "")
    target += " without gyroscope" if args.no_gyroscope else ""
    confidence = metrics.assess(logits, ids, temperature, args.abstain)
    print(metrics.report(f"{args.dataset} -> {target}", result, names), metrics.confidence_report(confidence), sep="\n")

    row |= {"gyroscope": "no"} if args.no_gyroscope else {}
    row |= ledger.shared_users(args.dataset, args.target_dataset, args.dataset_version)
    row["config_hash"] = hash_of(args, files, row, names, record, checkpoint)
    source = record and record.get("source_test")
    ledger.save_test(
        files.classifier(f"transformer_{args.target_dataset}{'_acc' if args.no_gyroscope else ''}.npz"),
        (args.dataset, args.target_dataset, args.dataset_version),
        row | ledger.source_scores(source),
        result,
        (rows, ids, logits),
        ledger.confidence_columns(confidence, source),
    )
    return result | confidence | {"names": names, "predictions": logits.argmax(1)}


if __name__ == "__main__":
    sys.exit(run(main, get_args))
