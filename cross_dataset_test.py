"""Stage 3: the source's classifier on all windows of a target data set that it has never seen.

    python cross_dataset_test.py -d uci -td hhar

reads   saved/pretrain_base_uci_20_120/model_masked_6_1.pt, saved/classifier_base_transformer_uci_20_120/
        model_transformer.pt, dataset/hhar/{data,label}_20_120.npy
writes  one row to saved/results.csv, and the predictions beside the classifier (model_transformer_hhar.npz)

Nothing of the target is used for anything but these scores. Settings come from the artefacts' JSON, the
temperature that calibrates the confidence too. --abstain 0.9 also prints how well the windows of at least that do.
"""

import sys

from utils import add_abstain, make_parser, run


def get_args(argv=None):
    parser = make_parser(__doc__, train_cfg="config/train.json")
    add_abstain(parser)
    return parser.parse_args(argv)


args = get_args() if __name__ == "__main__" else None  # before the heavy imports: --help and a typo answer at once

import numpy as np  # noqa: E402
import torch  # noqa: E402

import artefacts  # noqa: E402
import calibration  # noqa: E402
import configs  # noqa: E402
import ledger  # noqa: E402
import utils  # noqa: E402
import v2  # noqa: E402
from metrics import report, scores  # noqa: E402
from models import DEAD_CLASSIFIER, DEAD_MASKED, Classifier, MaskedModel, encode  # noqa: E402
from utils import UserError  # noqa: E402


@torch.no_grad()
def classify(model, classifier, windows):
    """Logits (N, classes) of raw windows (N, T, C): encoder, then classifier, batch after batch."""
    classifier.eval()
    return torch.cat([classifier(h) for h in encode(model, windows)]).cpu()


def load_networks(args, path, checkpoint, model_cfg, classifier_cfg, names, again):
    """The encoder and the classifier from their files, as a function: (raw windows, device) -> logits on the CPU."""
    if configs.method_of(args.model_version) == "v2":  # its classifier's file holds the encoder as trained with it
        return v2.load_classifier(path, model_cfg, classifier_cfg, names, f"make it with: {again}")
    classifier, model = Classifier(classifier_cfg, len(names)), MaskedModel(model_cfg)
    artefacts.load_state(path, classifier, DEAD_CLASSIFIER, f"make it with: {again}")
    artefacts.load_state(checkpoint, model, DEAD_MASKED, f"make it with: python pretrain.py -d {args.dataset}")
    return lambda windows, device: classify(model.to(device), classifier.to(device), windows)


def settings(args, path, record):
    """What the artefacts' JSON says of the run, checked against the flags; for a released classifier the flags."""
    config = record["config"] if record else {}
    cfg = configs.read_train_config(args)
    embedding = config.get("embedding", {})
    pretrain = embedding.get("pretrain", {})
    recorded = config.get("train", {})
    if record and args.train_cfg:
        same = {key: cfg[key] for key in cfg if key != "seed"}
        utils.check_same(f"{path}, which -t {args.train_cfg} contradicts,", recorded, same)
    if record and config["label_index"] != args.label_index:
        raise UserError(f"-l {args.label_index} contradicts {path}, made with -l {config['label_index']}")
    default = configs.read_config("config/pretrain.json", configs.PRETRAIN_KEYS, configs.DEAD_KEYS)
    return {
        "augment_method": utils.agreed("-am", args.augument_method, config.get("augment_method"), path, "channel_aug"),
        "label_rate": utils.agreed("-lr", args.label_rate, config.get("label_rate"), path, 0.1),
        "seed": utils.agreed("--seed", args.seed, recorded.get("seed"), path, cfg["seed"]),
        "pretrain_seed": pretrain.get("seed", ""),
        "epochs": embedding.get("epochs") or "",
        "split_by": recorded.get("split_by", cfg["split_by"]),
        "label_index": args.label_index,
        "model_version": args.model_version,
        "save_model": args.save_model,
        "loss_weights": utils.loss_weights(pretrain if "lambda1" in pretrain else default),
    }


def hash_of(args, row, names, record, checkpoint):
    """The row's config_hash, from the artefacts' JSON; a released file's contents stand for its configuration."""
    pretrained = artefacts.load_record(checkpoint)
    windows = f"dataset/{args.dataset}/data_{args.dataset_version}.npy"
    parents = pretrained["made_from"] if pretrained else {checkpoint: artefacts.fingerprint(checkpoint)}
    more = [was for parent, was in parents.items() if parent != windows]
    classifier = record["config"] if record else row | {"classes": names}
    if not record:
        more.append(artefacts.fingerprint(utils.classifier_path(args)))
    trained_with = ledger.training(pretrained and pretrained["config"], classifier, more)
    return ledger.config_hash(trained_with, args.dataset, args.target_dataset, args.dataset_version)


def recorded_temperature(path, record):
    """The classifier's temperature from its JSON; 1, with a line that says so, where none is recorded."""
    if record is None or "temperature" not in record:
        print(f"temperature 1: none is recorded beside {path} (a released classifier, or one of an older version)")
        return 1.0
    found = record["temperature"]
    if isinstance(found, bool) or not isinstance(found, int | float) or not 0 < found < float("inf"):
        raise UserError(f"{artefacts.record_path(path)}: 'temperature' must be a number above 0; make it again")
    return float(found)


def main(args):
    if args.deterministic:
        utils.set_deterministic()
    device = utils.pick_device(args.gpu)
    model_cfg, classifier_cfg = (
        configs.read_encoder_config(args.model_version), configs.read_classifier_config(args.model_version)
    )  # fmt: skip
    source_cfg = configs.dataset_config(args.dataset, args.dataset_version)
    column, names = configs.label_names(source_cfg, args.label_index)
    data, labels, target_cfg = utils.load_windows(args.target_dataset, args.dataset_version)
    configs.check_fits(model_cfg, target_cfg)
    target_column, target_names = configs.label_names(target_cfg, args.label_index)
    if (target_column, target_names) != (column, names):
        raise UserError(
            f"-l {args.label_index} is {column} ({', '.join(names)}) in {args.dataset}, but {target_column} "
            f"({', '.join(target_names)}) in {args.target_dataset}; dataset/data_config.json must name the same classes"
        )
    label_path = f"dataset/{args.target_dataset}/label_{args.dataset_version}.npy"
    ids = utils.window_labels(labels, args.label_index, names, label_path)

    path = utils.classifier_path(args)
    again = f"python embedding.py -d {args.dataset} && python classifier.py -d {args.dataset} -s {args.save_model}"
    keys = {"train": dict, "embedding": dict, "label_index": int, "dataset": str}
    record = artefacts.load_record(path, keys)
    row, temperature = settings(args, path, record), recorded_temperature(path, record)
    if record:
        utils.check_same(path, record["config"], {"model": classifier_cfg, "dataset": args.dataset})
    checkpoint = f"{utils.pretrain_stem(args, utils.pretrained_name(args))}_masked_{row['loss_weights']}.pt"
    logits_of = load_networks(args, path, checkpoint, model_cfg, classifier_cfg, names, again)
    if record:
        artefacts.check_parents(path, record, again)
        utils.check_same(checkpoint, record["config"]["embedding"], {"model": model_cfg})
        made_from = record["config"]["embedding"].get("checkpoint", checkpoint)
        if made_from != checkpoint:
            raise UserError(f"{path} was made from {made_from}, not from {checkpoint}; check -f and -s")

    rows = np.flatnonzero(ids >= 0)  # a window whose label changes within it has none
    if len(rows) == 0:
        raise UserError(f"{label_path}: no window has one label throughout; nothing to test on")
    if len(rows) < len(ids):
        utils.warn(f"{len(ids) - len(rows)} windows of {args.target_dataset} change their label and are left out")
    absent = [name for i, name in enumerate(names) if i not in ids[rows]]
    if absent:
        utils.warn(f"{args.target_dataset} has no window of {', '.join(absent)}: 0 in the macro means")
    if args.dataset == args.target_dataset:
        utils.warn(f"{args.target_dataset} is the source too: windows it was trained on are among those tested")

    windows = torch.tensor(np.asarray(data[rows], dtype=np.float32))
    logits = logits_of(windows, device).numpy()
    result = scores(ids[rows], logits.argmax(1), len(names))
    target = args.target_dataset + (" (simulated)" if target_cfg.get("simulated") else "")
    confidence = calibration.assess(logits, ids[rows], temperature, args.abstain)
    print(report(f"{args.dataset} -> {target}", result, names), calibration.report(confidence), sep="\n")

    lambda1, lambda2 = row.pop("loss_weights").split("_")
    more = {"lambda1": lambda1, "lambda2": lambda2, "config_hash": hash_of(args, row, names, record, checkpoint)}
    source = record and record.get("source_test")
    more |= ledger.source_scores(source)
    npz = path.with_name(f"{path.stem}_{args.target_dataset}.npz")
    ledger.save_test(npz, args.dataset, args.target_dataset, args.dataset_version, row | more, result,
                     (rows, ids[rows], logits), ledger.confidence_columns(confidence, source))  # fmt: skip
    return result | confidence | {"names": names, "predictions": logits.argmax(1)}


if __name__ == "__main__":
    sys.exit(run(main, args))
