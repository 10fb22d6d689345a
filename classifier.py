"""Stage 2b: a classifier on the representations of a few labelled windows of the source data set.

    python classifier.py -d uci -lr 0.1

reads   embed/embed_uci_20_120.npy, embed/label_uci_20_120.npy
writes  saved/classifier_base_transformer_uci_20_120/model_transformer.pt, and a JSON and the losses (CSV) beside it

The epoch with the lowest validation loss is saved, and in its JSON the temperature that calibrates its confidence,
fitted on the validation part (metrics.py); then the scores on the source's test part are printed.
"""

import math
import sys

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm

import fast
import metrics
import utils
import v2
from augment import copy_count, make_generator
from batches import shuffled
from bookkeeping import artefacts, configs
from bookkeeping.commands import AUGMENTATION, LABEL_RATE, UserError, again, make_parser, run
from bookkeeping.resume import Resume
from bookkeeping.stems import replacing
from models import Classifier

EMBEDDING = {  # what is read of an embedding's configuration, in the form of artefacts.fits
    "augment_method": str,
    "dataset": str,
    "counts?": [int],
    "labels?": {"*": {"index": int, "names": [str]}},
    "pretrain?": {"seed?": int, "lambda1?": artefacts.NUMBER, "lambda2?": artefacts.NUMBER},
}


def get_args(argv=None):
    parser = make_parser(__doc__, train_cfg="config/train.json")
    add = parser.add_argument
    add(
        "--restart",
        action="store_true",
        help="start afresh where a run left its state, or a classifier of other labels",
    )
    kinds = "of the large products: default fp32 on a CPU, tf32 on a GPU; bf16 is for a CPU with AMX"
    add("--precision", choices=("fp32", "tf32", "bf16"), help=kinds)
    add("--quiet", action="store_true", help="no progress bar")
    return configs.parse(parser, argv)


def load_embedding(args, files):
    """The embedding and its labels as they lie on disk, checked, and its JSON or None."""
    embed_path, label_path = files.embedding(), files.embedding("label")
    repeat = again("embedding", vars(args))
    embed = artefacts.load_npy(embed_path, f"make it with: {repeat}")
    labels = artefacts.load_npy(label_path, f"make it with: {repeat}")
    if embed.ndim != 3 or embed.dtype != np.float32:
        raise UserError(f"{embed_path} is {embed.dtype} {embed.shape}, not float32 (rows, T, D); repeat: {repeat}")
    if labels.ndim != 3 or labels.shape[:2] != embed.shape[:2]:
        raise UserError(f"{label_path} has shape {labels.shape}, not {embed.shape[:2]} + (columns,); repeat: {repeat}")
    record = artefacts.load_record(embed_path, EMBEDDING)
    if record:
        artefacts.check_parents(embed_path, record, repeat)
        artefacts.check_same(embed_path, record["config"], {"dataset": args.dataset})
        label_record = artefacts.load_record(label_path)
        if label_record and label_record["made_from"] != record["made_from"]:
            raise UserError(f"{label_path} and {embed_path} are of different runs; repeat: {repeat}")
    return embed, labels, record


def settings(args, files, embed, record):
    """(the classifier's whole configuration, copies of each window in the embedding): flags, files and JSON agree."""
    path, model_cfg = files.embedding(), configs.read_classifier_config(args.model_version)
    if embed.shape[2] != model_cfg["input_size"]:
        wanted = f"config/classifier.json's 'input_size' is {model_cfg['input_size']}"
        raise UserError(f"{path} has {embed.shape[2]} features, but {wanted}; change one of them")
    embedding = record["config"] if record else {}
    method = artefacts.agreed("-am", args.augument_method, embedding.get("augment_method"), path, AUGMENTATION)
    copies = copy_count(method)
    if len(embed) == 0 or len(embed) % copies:
        other = "was it made with another -am?"
        raise UserError(f"{path} holds {len(embed)} rows, no multiple of {copies} copies; {other}")
    entry = configs.dataset_config(args.dataset, args.dataset_version)
    column, names = configs.label_names(entry, args.label_index)
    if "labels" in embedding:  # whose ids are those of the classes' order then
        then = embedding["labels"].get(column, {})
        if then.get("index") != args.label_index or sorted(then["names"]) != sorted(names):
            was = f"{column} ({', '.join(then.get('names', ['none']))}), now {', '.join(names)}"
            raise UserError(f"{path} was made with other labels: {was}; repeat: {again('embedding', vars(args))}")
        names = then["names"]
    return {
        "dataset": args.dataset,
        "dataset_version": args.dataset_version,
        "model_version": args.model_version,
        "label_index": args.label_index,
        "label_rate": LABEL_RATE if args.label_rate is None else args.label_rate,
        "augment_method": method,
        "train": configs.read_train_config(args),
        "model": model_cfg,
        "classes": names,
        "embedding": embedding,
    }, copies


def epoch_rows(sizes, batch_size, most, generator):
    """The batches of an epoch, at most `most`: every row once, but of several sources equal shares in each batch."""
    if len(sizes) > 1:
        return shuffled(sizes, min(most, math.ceil(sum(sizes) / batch_size)), batch_size, generator)
    order = torch.randperm(sizes[0], generator=generator, device=generator.device)[: most * batch_size]
    return order.split(batch_size)


def load_rows(path, rows, ids, device):
    """The representations (n, T, D) and labels (n,) of some rows, on the device. Raises UserError for NaN."""
    h = torch.from_numpy(artefacts.read_rows(path, rows))
    if not torch.isfinite(h).all():
        raise UserError(f"{path} holds NaN or infinity; make it again")
    return h.to(device), torch.from_numpy(ids[rows]).to(device)


def train_epoch(engine, model, optimizer, h, y, sizes, batch_size, most, generator):
    """One epoch over the labelled windows h (N, T, D) of the sources (`sizes` rows each); the mean loss, a tensor."""
    model.train()
    dropout = engine.dropout(model, generator)
    total, seen = torch.zeros((), device=h.device), 0
    for rows in epoch_rows(sizes, batch_size, most, generator):
        loss = cross_entropy(engine.logits(model, h[rows], dropout), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(rows)
        seen += len(rows)
    return total / seen


@torch.no_grad()
def predict(model, h, logits=lambda model, part: model(part)):
    """Logits (N, classes) of representations h (N, T, D), in eval mode; by the module, or an engine's `logits`."""
    model.eval()
    batch_size = 64 if h.device.type == "cpu" else 1024  # the feed-forward of a batch of 64 takes 63 MB
    return torch.cat([logits(model, part) for part in h.split(batch_size)])


def score(model, h, y, classes, temperature):
    """Scores and calibration errors on representations h (N, T, D) with labels y (N,): a dict (metrics.py)."""
    logits = predict(model, h)
    result = metrics.scores(y.cpu().numpy(), logits.argmax(1).cpu().numpy(), classes)
    return result | metrics.errors(logits, y, temperature)


def main(args):
    if configs.method_of(args.model_version) == "v2":
        return v2.train(args, fast.engine(args.gpu, args.deterministic))
    engine = fast.engine(args.gpu, args.deterministic, precision=args.precision, on_gpu="tf32")
    if engine.precision == "bf16" and engine.device.type != "cpu":
        raise UserError("--precision bf16 of the classifier is for a CPU with AMX; take tf32 or fp32 on a GPU")
    files = utils.Files(args.dataset, args.dataset_version, args.model_version, args.save_model, source=args.model_file)
    utils.check_accepted(args.dataset, args.dataset_version)
    embed, labels, record = load_embedding(args, files)
    config, copies = settings(args, files, embed, record)
    with replacing(files.classifier(), config, args.restart):
        return fit(args, engine, files, labels, record, config, copies)


def fit(args, engine, files, labels, record, config, copies):
    """Train, test on the source's test part and save, as `config` says (main)."""
    device = engine.device
    cfg, names, label_path = config["train"], config["classes"], files.embedding("label")
    ids = utils.window_labels(labels, args.label_index, names, label_path)
    seed, rate, counts = cfg["seed"], config["label_rate"], config["embedding"].get("counts", [len(labels) // copies])
    split = utils.labelled_split(ids, names, label_path, rate, counts, copies, seed, cfg["split_by"])

    sizes = [len(rows) for rows in split[0]]
    labelled, train, val, test = map(np.concatenate, split)
    (h, y), (val_h, val_y) = (load_rows(files.embedding(), rows, ids, device) for rows in (labelled, val))
    torch.manual_seed(seed)
    model = Classifier(config["model"], len(names)).to(device)
    optimizer = utils.Adam(model.parameters(), lr=cfg["lr"], fused=True)
    how = engine.how([files.embedding(), label_path]) | {"precision": engine.precision}
    resume = Resume(files.classifier("transformer_state.pt"), config | how, args.restart)
    parts = {"model": model, "optimizer": optimizer}
    first, best, history = resume.restore(parts, cfg["n_epochs"])

    rows = f"{len(labelled)} labelled of {len(train)} training rows, {len(val)} for validation, {len(test)} for test"
    print(f"{args.dataset}: {rows} ({copies} copies of {sum(counts)} windows, split by {cfg['split_by']}) on {device}")
    batch_size = min(cfg["batch_size"], len(h))
    steps = math.ceil(len(h) / batch_size)
    bar = tqdm(total=cfg["n_epochs"], initial=first, unit="epoch", disable=args.quiet)
    with resume.guard(), bar:
        for epoch in range(first, cfg["n_epochs"]):
            most = cfg["total_steps"] - epoch * steps if cfg["total_steps"] else steps
            if most <= 0:
                break
            generator = make_generator(device, seed, "classifier epoch", epoch)
            torch.manual_seed(generator.initial_seed())  # dropout on a GPU: a function of (seed, epoch) too
            loss = train_epoch(engine, model, optimizer, h, y, sizes, batch_size, most, generator).item()
            val_loss = cross_entropy(predict(model, val_h, engine.logits), val_y).item()
            if not math.isfinite(loss + val_loss):
                terms = f"training {loss:.4g}, validation {val_loss:.4g}"
                raise UserError(f"the loss is not finite in epoch {epoch + 1} ({terms}); lower 'lr' in the -t config")
            history.append({"epoch": epoch + 1, "train_loss": loss, "val_loss": val_loss})
            if val_loss < best["loss"]:
                best = {"loss": val_loss, "epoch": epoch + 1, **artefacts.states(model=model)}
            bar.set_postfix_str(f"loss {loss:.3f} validation {val_loss:.3f} best {best['loss']:.3f}", refresh=False)
            bar.update()
            resume.after_epoch(parts, epoch=epoch + 1, best=best, history=history)

        model.load_state_dict(best["model"])
        found = {"temperature": metrics.fit_temperature(predict(model, val_h), val_y)}
        result = score(model, *load_rows(files.embedding(), test, ids, device), len(names), **found)
        more = {"epoch": best["epoch"], "precision": engine.precision, **found, "source_test": result}
        made_from = [files.embedding(), label_path, *(record["made_from"] if record else ())]
        record = artefacts.make_record(config, made_from, str(device), **more)
        artefacts.save_state(files.classifier(), best["model"], record)
        artefacts.save_table(files.classifier("transformer_losses.csv"), history)
    resume.finished()
    print(f"lowest validation loss {best['loss']:.4f} in epoch {best['epoch']}; saved {files.classifier()}")
    print(metrics.report(f"{args.dataset}, test part", result, names))
    print(metrics.confidence_report(result | found))
    return result | {"path": files.classifier(), "best_epoch": best["epoch"], "names": names}


if __name__ == "__main__":
    sys.exit(run(main, get_args))
