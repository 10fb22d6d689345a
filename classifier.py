"""Stage 2b: a classifier on the representations of a few labelled windows of the source data set.

    python classifier.py -d uci -lr 0.1

reads   embed/embed_uci_20_120.npy, embed/label_uci_20_120.npy
writes  saved/classifier_base_transformer_uci_20_120/model_transformer.pt, and a JSON and the losses (CSV) beside it

The epoch with the lowest validation loss is saved, and in its JSON the temperature that calibrates its confidence,
fitted on the validation part (calibration.py); then the scores on the source's test part are printed.
"""

import sys

from utils import make_parser, run


def get_args(argv=None):
    parser = make_parser(__doc__, train_cfg="config/train.json")
    parser.add_argument("--restart", action="store_true", help="start afresh where an interrupted run left its state")
    parser.add_argument("--precision", choices=("fp32", "tf32", "bf16"), help="of the large products: default fp32 on "
                        "a CPU, tf32 on a GPU; bf16 is for a CPU with AMX")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


args = get_args() if __name__ == "__main__" else None  # before the heavy imports: --help and a typo answer at once

import math  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch.nn.functional import cross_entropy  # noqa: E402
from tqdm import tqdm  # noqa: E402

import artefacts  # noqa: E402
import calibration  # noqa: E402
import configs  # noqa: E402
import fast  # noqa: E402
import utils  # noqa: E402
import v2  # noqa: E402
from augment import copy_count, make_generator  # noqa: E402
from fast_classifier import Dropout  # noqa: E402
from fast_classifier import logits as fast_logits  # noqa: E402
from metrics import report, scores  # noqa: E402
from models import Classifier  # noqa: E402
from resume import Resume  # noqa: E402
from utils import UserError  # noqa: E402


def load_embedding(args):
    """The embedding, checked: paths, shape, copies, augmentation, one id per row, their names, its JSON or None."""
    embed_path, label_path = utils.embedding_paths(args)
    repeat = f"python embedding.py -d {args.dataset} -s {utils.pretrained_name(args)}"
    embed = artefacts.load_npy(embed_path, f"make it with: {repeat}")
    labels = artefacts.load_npy(label_path, f"make it with: {repeat}")
    if embed.ndim != 3 or embed.dtype != np.float32:
        raise UserError(f"{embed_path} is {embed.dtype} {embed.shape}, not float32 (rows, T, D); repeat: {repeat}")
    if labels.ndim != 3 or labels.shape[:2] != embed.shape[:2]:
        raise UserError(f"{label_path} has shape {labels.shape}, not {embed.shape[:2]} + (columns,); repeat: {repeat}")
    record = artefacts.load_record(embed_path, {"augment_method": str, "dataset": str})
    if record:
        artefacts.check_parents(embed_path, record, repeat)
        utils.check_same(embed_path, record["config"], {"dataset": args.dataset})
        label_record = artefacts.load_record(label_path)
        if label_record and label_record["made_from"] != record["made_from"]:
            raise UserError(f"{label_path} and {embed_path} are of different runs; repeat: {repeat}")
    config = record["config"] if record else {}
    method = utils.agreed("-am", args.augument_method, config.get("augment_method"), embed_path, "channel_aug")
    copies = copy_count(method)
    if len(embed) == 0 or len(embed) % copies:
        raise UserError(f"{embed_path} holds {len(embed)} rows, no multiple of {copies} copies; "
                        "was it made with another -am?")  # fmt: skip
    data_cfg = configs.dataset_config(args.dataset, args.dataset_version)
    _, names = configs.label_names(data_cfg, args.label_index)
    ids = utils.window_labels(labels, args.label_index, names, label_path)
    return embed_path, label_path, embed.shape, copies, method, ids, names, record


def settle_precision(precision, device):
    """fast.settle_precision, but that on a GPU there is no bf16 here."""
    if precision == "bf16" and device.type != "cpu":
        raise UserError("--precision bf16 of the classifier is for a CPU with AMX; take tf32 or fp32 on a GPU")
    return fast.settle_precision(precision, device)


def train_epoch(model, optimizer, h, y, batch_size, most, generator, dtype=None):
    """One epoch (at most `most` steps) over the labelled windows in a random order; returns the mean loss, a tensor.

    On a CPU the large products are made in `dtype` (that of h).
    """
    model.train()
    on_cpu = h.device.type == "cpu" and isinstance(model, Classifier)  # not a baseline
    dropout = Dropout.of(model, generator) if on_cpu else None
    total = torch.zeros((), device=h.device)
    order = torch.randperm(len(h), generator=generator, device=h.device)[: most * batch_size]
    for rows in order.split(batch_size):
        if on_cpu:
            loss = cross_entropy(fast_logits(model, h[rows], dropout, dtype), y[rows])
        else:
            loss = model(h[rows], y[rows])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(rows)
    return total / len(order)


@torch.no_grad()
def predict(model, h, dtype=None):
    """Logits (N, classes) of representations h (N, T, D), in eval mode; with `dtype` on a CPU as in train_epoch."""
    model.eval()
    batch_size = 64 if h.device.type == "cpu" else 1024  # the feed-forward of a batch of 64 takes 63 MB
    logits = (lambda part: fast_logits(model, part, None, dtype)) if dtype else model
    return torch.cat([logits(part) for part in h.split(batch_size)])


def main(args):
    if configs.method_of(args.model_version) == "v2":
        return v2.train(args)
    cfg = configs.read_train_config(args)
    model_cfg = configs.read_classifier_config(args.model_version)
    if args.deterministic:
        utils.set_deterministic()
    device = utils.pick_device(args.gpu)
    precision = args.precision or ("fp32" if device.type == "cpu" else "tf32")
    dtype = settle_precision(precision, device)
    embed_path, label_path, shape, copies, method, ids, names, record = load_embedding(args)
    label_rate = 0.1 if args.label_rate is None else args.label_rate
    if shape[2] != model_cfg["input_size"]:
        raise UserError(f"{embed_path} has {shape[2]} features, but config/classifier.json's 'input_size' is "
                        f"{model_cfg['input_size']}; change one of them")  # fmt: skip
    if len(np.unique(ids[ids >= 0])) < 2:
        raise UserError(f"{label_path}: column {args.label_index} holds a single class; nothing to classify")

    count, seed, split_by = shape[0] // copies, cfg["seed"], cfg["split_by"]
    train, val, test = (
        rows[ids[rows] >= 0] for rows in utils.split_windows(count, copies, seed, split_by)
    )  # a window whose label changes within it has none
    if min(map(len, (train, val, test))) == 0:
        raise UserError(f"{label_path}: {count} windows are too few to train, validate and test on")
    labelled = utils.pick_labelled(train, label_rate, count, copies, seed, split_by)
    missing = [name for i, name in enumerate(names) if i not in ids[labelled]]
    if missing:
        utils.warn(f"no labelled window of {', '.join(missing)} at label rate {label_rate:g}, seed {seed}")

    def load(rows):
        h = torch.from_numpy(artefacts.read_rows(embed_path, rows))
        if not torch.isfinite(h).all():
            raise UserError(f"{embed_path} holds NaN or infinity; make it again")
        return h.to(device), torch.from_numpy(ids[rows]).to(device)

    (h, y), (val_h, val_y) = load(labelled), load(val)
    torch.manual_seed(seed)
    model = Classifier(model_cfg, len(names)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=cfg["lr"], fused=True)
    path = utils.classifier_path(args)
    embedding = record["config"] if record else {}
    config = {
        "dataset": args.dataset, "dataset_version": args.dataset_version, "model_version": args.model_version,
        "label_index": args.label_index, "label_rate": label_rate, "augment_method": method, "train": cfg,
        "model": model_cfg, "classes": names, "embedding": embedding,
    }  # fmt: skip
    parents = {str(p): artefacts.fingerprint(p) for p in (embed_path, label_path)}
    run = {"device": device.type, "precision": precision, "made_from": parents}
    resume = Resume(path.with_name(f"{path.stem}_state.pt"), config | run, args.restart)
    first, best, history = 0, {"loss": math.inf}, []
    if state := resume.load():
        model.load_state_dict(state["model"]), optimizer.load_state_dict(state["optimizer"])
        first, best, history = state["epoch"], state["best"], state["history"]
        print(f"continuing from {resume.path}: {first} of {cfg['n_epochs']} epochs are done")

    print(f"{args.dataset}: {len(labelled)} labelled of {len(train)} training rows, {len(val)} for validation, "
          f"{len(test)} for test ({copies} copies of {count} windows, split by {split_by}) on {device}")  # fmt: skip
    batch_size = min(cfg["batch_size"], len(h))
    steps = math.ceil(len(h) / batch_size)
    with resume.guard(), tqdm(total=cfg["n_epochs"], initial=first, unit="epoch", disable=args.quiet) as bar:
        for epoch in range(first, cfg["n_epochs"]):
            most = cfg["total_steps"] - epoch * steps if cfg["total_steps"] else steps
            if most <= 0:
                break
            generator = make_generator(device, seed, "classifier epoch", epoch)
            torch.manual_seed(generator.initial_seed())  # dropout on a GPU: a function of (seed, epoch) too
            loss = train_epoch(model, optimizer, h, y, batch_size, most, generator, dtype).item()
            val_loss = cross_entropy(predict(model, val_h, dtype), val_y).item()
            if not math.isfinite(loss + val_loss):
                raise UserError(f"the loss is not finite in epoch {epoch + 1} (training {loss:.4g}, validation "
                                f"{val_loss:.4g}); lower 'lr' in the -t config")  # fmt: skip
            history.append({"epoch": epoch + 1, "train_loss": loss, "val_loss": val_loss})
            if val_loss < best["loss"]:
                weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
                best = {"loss": val_loss, "epoch": epoch + 1, "model": weights}
            bar.set_postfix_str(f"loss {loss:.3f} validation {val_loss:.3f} best {best['loss']:.3f}", refresh=False)
            bar.update()
            resume.after_epoch(lambda epoch=epoch, best=best: {
                "model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch + 1, "best": best,
                "history": history,
            })  # fmt: skip

        model.load_state_dict(best["model"])
        temperature = calibration.fit_temperature(predict(model, val_h), val_y)
        h, y = load(test)
        logits = predict(model, h)
        result = scores(y.cpu().numpy(), logits.argmax(1).cpu().numpy(), len(names))
        result |= calibration.errors(logits, y, temperature)
        made_from = [embed_path, label_path, *(record["made_from"] if record else ())]
        more = {"epoch": best["epoch"], "precision": precision, "temperature": temperature, "source_test": result}
        artefacts.save_state(path, best["model"], artefacts.make_record(config, made_from, str(device), **more))
        artefacts.save_table(path.with_name(f"{path.stem}_losses.csv"), history)
    resume.finished()
    print(f"lowest validation loss {best['loss']:.4f} in epoch {best['epoch']}; saved {path}")
    print(report(f"{args.dataset}, test part", result, names))
    print(calibration.report(result | {"temperature": temperature}))
    return result | {"path": path, "best_epoch": best["epoch"], "names": names}


if __name__ == "__main__":
    sys.exit(run(main, args))
