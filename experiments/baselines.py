"""What a plain supervised model reaches on the same labelled windows: no pretraining, no representation.

    python -m experiments.baselines -d uci --targets motion hhar -b cnn -lr 0.1

reads   dataset/uci/{data,label}_20_120.npy, and each target's
writes  saved/baseline_cnn_uci_20_120/model.pt, a JSON and the losses (CSV) beside it; a row to saved/results.csv and
        the predictions (model_motion.npz) for each target

-b cnn         a small 1-D CNN on instance-normalised windows
-b forest      a random forest on simple statistics of the windows (scikit-learn); of it the JSON alone is kept
-b end_to_end  CrossHAR's encoder and classifier, trained together from random weights

The labelled windows are those that classifier.py picks for the same -lr, --seed, -am and config/train.json, copies
included; epochs, batch size, the choice of the epoch by validation loss and the temperature are its own too. The
forest's confidence is its own probabilities: no temperature is fitted to them, and the file of predictions holds them
in place of logits. Nothing of a target is used for anything but its scores.
"""

import math
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.ensemble import RandomForestClassifier
from torch import nn
from tqdm import tqdm

import metrics
import plain
import utils
from augment import augment_copies, copy_count, instance_norm, make_generator
from bookkeeping import artefacts, configs, ledger
from bookkeeping.commands import AUGMENTATION, LABEL_RATE, UserError, a_name, add_abstain, make_parser, run
from bookkeeping.stems import replacing
from classifier import train_epoch
from models import Classifier, Transformer

MODELS = ("cnn", "forest", "end_to_end")


def get_args(argv=None):
    parser = make_parser(__doc__, train_cfg="config/train.json")
    parser.add_argument("-b", "--baseline", choices=MODELS, default="cnn", help="which model (default cnn)")
    parser.add_argument("--targets", nargs="+", type=a_name, help="target data sets (default: that of -td)")
    add_abstain(parser)
    parser.add_argument("--restart", action="store_true", help="replace a baseline of other labels")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return configs.parse(parser, argv)


TREES = 300
WIDTHS = (64, 64, 128)  # channels of the CNN's blocks


class CNN(nn.Module):
    """Three blocks of convolution, BatchNorm, ReLU and pooling, the mean over time, Linear."""

    def __init__(self, C, classes, kernel=5, dropout=0.2):
        super().__init__()
        blocks = []
        for inside, out in zip((C, *WIDTHS), WIDTHS, strict=False):
            blocks += [nn.Conv1d(inside, out, kernel, padding=kernel // 2), nn.BatchNorm1d(out), nn.ReLU()]
            blocks += [nn.MaxPool1d(2)]
        self.features = nn.Sequential(*blocks)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(WIDTHS[-1], classes)

    def forward(self, x):
        """Logits (B, classes) of raw windows (B, T, C)."""
        h = self.features(instance_norm(x).transpose(1, 2)).mean(2)  # (B, F)
        return self.fc(self.dropout(h))


class EndToEnd(nn.Module):
    """The encoder and the classifier of the method as one network."""

    def __init__(self, encoder_cfg, classifier_cfg, classes):
        super().__init__()
        self.encoder = Transformer(encoder_cfg)
        self.classifier = Classifier(classifier_cfg, classes)

    def forward(self, x):
        """Logits (B, classes) of raw windows (B, T, C)."""
        return self.classifier(self.encoder(instance_norm(x)))


def statistics(x):
    """Simple statistics of raw windows: (N, T, C) array -> (N, 64) for 6 channels.

    Of each channel and of the length of the acceleration and of the angular rate: mean, standard deviation, least,
    quartiles, greatest, and the mean absolute difference of neighbouring steps. Raw, not normalised: the mean of an
    acceleration channel says how the device hangs.
    """
    x = np.asarray(x, dtype=np.float32)
    lengths = [np.linalg.norm(x[:, :, axes], axis=2, keepdims=True) for axes in (slice(0, 3), slice(3, 6))]
    x = np.concatenate([x, *lengths], axis=2)
    quantiles = np.quantile(x, [0, 0.25, 0.5, 0.75, 1], axis=1)
    change = np.abs(np.diff(x, axis=1)).mean(1)
    return np.concatenate([x.mean(1), x.std(1), *quantiles, change], axis=1).astype(np.float32)


def model_config(args):
    """What describes the model in its JSON."""
    if args.baseline == "forest":
        return {"trees": TREES}
    if args.baseline == "cnn":
        return {"widths": list(WIDTHS), "kernel": 5, "dropout": 0.2}
    return {
        "encoder": configs.read_encoder_config(args.model_version),
        "classifier": configs.read_classifier_config(args.model_version),
    }


def training(args):
    """All that the result depends on beside the data, for the row's config_hash."""
    entry = configs.dataset_config(args.dataset, args.dataset_version)
    return {
        "baseline": args.baseline,
        "dataset": args.dataset,
        "dataset_version": args.dataset_version,
        "label_index": args.label_index,
        "label_rate": LABEL_RATE if args.label_rate is None else args.label_rate,
        "augment_method": args.augument_method or AUGMENTATION,
        "train": configs.read_train_config(args),
        "model": model_config(args),
        "classes": configs.label_names(entry, args.label_index)[1],
    }


def stem_path(args, ending):
    """saved/baseline_cnn_D_DV/STEM and an ending: the files of a baseline."""
    folder = f"baseline_{args.baseline}_{args.dataset}_{args.dataset_version}"
    return Path("saved") / folder / f"{args.save_model}{ending}"


def labelled_windows(dataset, version, label_index, by_size=False):
    """A data set's windows (N, T, C), one id per window (-1 where it changes within), the classes' names.

    `by_size`: whether the model goes by the acceleration's size, as the forest does.
    """
    data, labels, entry = utils.load_windows(dataset, version)
    utils.check_gravity(dataset, version, data, refuse=by_size)
    configs.check_gyroscope(entry)
    column, names = configs.label_names(entry, label_index)
    ids = utils.window_labels(labels, label_index, names, utils.data_path(dataset, version, "label"))
    return torch.tensor(np.asarray(data, dtype=np.float32)), ids, (column, names)


def fit_forest(x, y, classes, seed):
    """A random forest on the windows' statistics; returns windows -> class probabilities (N, classes)."""
    forest = RandomForestClassifier(TREES, random_state=seed, n_jobs=torch.get_num_threads())
    forest.fit(statistics(x.numpy()), y.numpy())

    def predict(windows):
        probabilities = np.zeros((len(windows), classes), np.float32)
        probabilities[:, forest.classes_] = forest.predict_proba(statistics(windows.numpy()))
        return probabilities

    return predict


def fit_network(engine, model, cfg, sizes, x, y, val_x, val_y, quiet):
    """Train as classifier.py does; returns (windows -> logits on the CPU, history, the best epoch)."""
    device = engine.device
    x, y, val_x, val_y = (part.to(device) for part in (x, y, val_x, val_y))
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg["lr"], fused=True)
    batch_size = min(cfg["batch_size"], len(x))
    steps = math.ceil(len(x) / batch_size)
    best, history = {"loss": math.inf}, []

    @torch.no_grad()
    def predict(windows):
        model.eval()
        return torch.cat([model(part.to(device)) for part in windows.split(256)])

    for epoch in tqdm(range(cfg["n_epochs"]), unit="epoch", disable=quiet):
        most = cfg["total_steps"] - epoch * steps if cfg["total_steps"] else steps
        if most <= 0:
            break
        generator = make_generator(device, cfg["seed"], "baseline epoch", epoch)
        torch.manual_seed(generator.initial_seed())  # dropout: a function of (seed, epoch) too
        loss = train_epoch(engine, model, optimizer, x, y, sizes, batch_size, most, generator).item()
        val_loss = F.cross_entropy(predict(val_x), val_y).item()
        if not math.isfinite(loss + val_loss):
            raise UserError(f"the loss is not finite in epoch {epoch + 1}; lower 'lr' in the -t config")
        history.append({"epoch": epoch + 1, "train_loss": loss, "val_loss": val_loss})
        if val_loss < best["loss"]:
            best = {"loss": val_loss, "epoch": epoch + 1, **artefacts.states(model=model)}
    model.load_state_dict(best["model"])
    return lambda windows: predict(windows).cpu().numpy(), history, best["epoch"]


def build(args, config):
    """The network of -b, untrained."""
    classes = len(config["classes"])
    if args.baseline == "cnn":
        entry = configs.dataset_config(args.dataset, args.dataset_version)
        return CNN(entry["dimension"], classes, config["model"]["kernel"], config["model"]["dropout"])
    configs.check_fits(config["model"]["encoder"], configs.dataset_config(args.dataset, args.dataset_version))
    return EndToEnd(config["model"]["encoder"], config["model"]["classifier"], classes)


def fit(args, config, engine, sizes, labelled, val):
    """Train the model of -b on (windows, labels) pairs; returns (windows -> logits or probabilities, temperature)."""
    made_from = utils.Files(args.dataset, args.dataset_version).data("data", "label")
    if args.baseline == "forest":
        artefacts.save_json(stem_path(args, ".json"), artefacts.make_record(config, made_from, "cpu"))
        return fit_forest(*labelled, len(config["classes"]), config["train"]["seed"]), None
    torch.manual_seed(config["train"]["seed"])
    model = build(args, config).to(engine.device)
    predict, history, epoch = fit_network(engine, model, config["train"], sizes, *labelled, *val, args.quiet)
    temperature = metrics.fit_temperature(predict(val[0]), val[1])
    artefacts.save_table(stem_path(args, "_losses.csv"), history)
    record = artefacts.make_record(config, made_from, str(engine.device), epoch=epoch, temperature=temperature)
    artefacts.save_state(stem_path(args, ".pt"), model.state_dict(), record)
    return predict, temperature


def load_targets(args, targets, column):
    """{target: its windows (N, T, C) and labels (N,), -1 for none}, all checked before anything is trained.

    Raises UserError for one that is among several sources, has other classes or no window with a label.
    """
    sources, found = utils.sets_of(args.dataset), {}
    for target in targets:
        if len(sources) > 1 and target in sources:
            raise UserError(f"--targets {target} is one of the sources {', '.join(sources)}; choose another")
        by_size = args.baseline == "forest"
        data, labels, (name, own) = labelled_windows(target, args.dataset_version, args.label_index, by_size)
        labels = utils.in_classes(labels, own, column[1])
        if name != column[0] or labels is None:
            where = f"in {args.dataset} and in {target}; see their entries"
            raise UserError(f"-l {args.label_index} does not name the same classes {where}")
        if not (labels >= 0).any():
            raise UserError(f"dataset/{target}: no window has one label throughout; nothing to test on")
        found[target] = data, labels
    return found


def test(args, config, target, windows, predict, temperature, source):
    """Score the model on a target's windows (load_targets), print and keep it; returns the scores.

    `source` are those on the own test part.
    """
    version, names, (data, labels) = args.dataset_version, config["classes"], windows
    rows = np.flatnonzero(labels >= 0)
    logits = predict(data[rows])
    result = metrics.scores(labels[rows], logits.argmax(1), len(names))
    confidence = metrics.assess(logits, labels[rows], temperature, args.abstain)
    print(metrics.report(f"{args.dataset} -> {target}", result, names), metrics.confidence_report(confidence), sep="\n")
    settings = {key: config[key] for key in ("augment_method", "label_rate", "label_index")}
    settings |= {"seed": config["train"]["seed"], "split_by": config["train"]["split_by"]}
    settings |= {"model_version": args.model_version, "save_model": args.save_model, "baseline": args.baseline}
    settings |= ledger.source_scores(source) | ledger.shared_users(args.dataset, target, version)
    settings["config_hash"] = ledger.config_hash(config, args.dataset, target, version)
    ledger.save_test(
        stem_path(args, f"_{target}.npz"),
        (args.dataset, target, version),
        settings,
        result,
        (rows, labels[rows], logits),
        ledger.confidence_columns(confidence, source),
    )
    return result | confidence


def main(args):
    config = training(args)
    ledger.read_rows()  # refuses a table that is another
    cfg, rate, method, names = config["train"], config["label_rate"], config["augment_method"], config["classes"]
    engine = plain.engine("cpu" if args.baseline == "forest" else args.gpu, args.deterministic)
    by_size = args.baseline == "forest"
    raw, ids, column = labelled_windows(args.dataset, args.dataset_version, args.label_index, by_size)
    targets = load_targets(args, args.targets or [args.target_dataset], column)

    copies = copy_count(method)
    windows, ids = augment_copies(raw, method, cfg["seed"]), np.tile(ids, copies)
    where = utils.data_path(args.dataset, args.dataset_version, "label")
    counts = utils.counts_of(args.dataset, args.dataset_version)
    split = utils.labelled_split(ids, names, where, rate, counts, copies, cfg["seed"], cfg["split_by"])
    sizes = [len(rows) for rows in split[0]]
    labelled, train, val, rest = map(np.concatenate, split)
    of = f"{len(labelled)} labelled of {len(train)} training rows ({method}, split by {cfg['split_by']})"
    print(f"{args.dataset}: {args.baseline} on {of} on {engine.device}")

    def take(rows):
        return windows[rows], torch.from_numpy(ids[rows])

    with replacing(stem_path(args, ".pt"), config, args.restart):
        predict, temperature = fit(args, config, engine, sizes, take(labelled), take(val))
        logits = predict(windows[rest])
        source = metrics.scores(ids[rest], logits.argmax(1), len(names)) | metrics.errors(
            logits, ids[rest], temperature
        )
        print(metrics.report(f"{args.dataset}, test part", source, names))
        print(metrics.confidence_report(source | {"temperature": temperature}))
        return {target: test(args, config, target, w, predict, temperature, source) for target, w in targets.items()}


if __name__ == "__main__":
    sys.exit(run(main, get_args))
