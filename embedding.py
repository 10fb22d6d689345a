"""Stage 2a: the representations of the source data set, its augmented copies included.

    python embedding.py -d uci

reads   saved/pretrain_base_uci_20_120/model_masked_6_1.pt, dataset/uci/{data,label}_20_120.npy
writes  embed/embed_uci_20_120.npy (6N, 120, 72) float32 and embed/label_uci_20_120.npy (6N, 120, K), a JSON beside each

The copies are those of pretraining: its augmentation and seed come from the checkpoint's JSON.
"""

import sys

import numpy as np
import torch

import fast
import utils
from augment import Copies, copy_count
from batches import FromFile
from bookkeeping import artefacts, configs
from bookkeeping.commands import AUGMENTATION, again, make_parser, run
from bookkeeping.stems import replacing
from models import DEAD_MASKED, MaskedModel, encode


def get_args(argv=None):
    return configs.parse(make_parser(__doc__), argv)


def load_encoder(args, checkpoint, model_cfg):
    """The pretrained masked model, and its JSON ({} beside a released checkpoint): checked against data and flags."""
    repeat = again("pretrain", vars(args))
    record = artefacts.load_record(checkpoint, {"augment_method": str, "train": {"seed": int}, "model": dict})
    if record:
        artefacts.check_parents(checkpoint, record, repeat)
        artefacts.check_same(checkpoint, record["config"], {"model": model_cfg})
    model = MaskedModel(model_cfg)
    artefacts.load_state(checkpoint, model, DEAD_MASKED, hint=f"make it with: {repeat}")
    return model, record or {"config": {}}


def write(files, engine, model, windows, labels, record):
    """Write the representations of the windows (copies of `labels` (N, T, K)' windows), and their labels."""
    shape = (len(windows), *windows.data.shape[1:2], record["config"]["model"]["hidden"])
    with artefacts.npy_writer(files.embedding(), shape, record=record) as write:
        for h in encode(engine, model.to(engine.device), windows):
            write(h.cpu().numpy())
    label_path = files.embedding("label")
    with artefacts.npy_writer(label_path, (len(windows), *labels.shape[1:]), labels.dtype, record) as write:
        for start in range(0, len(windows), 4096):
            write(labels[np.arange(start, min(start + 4096, len(windows))) % len(labels)])
    return shape


def main(args):
    configs.refuse_v2(args)
    cfg, model_cfg = configs.read_train_config(args), configs.read_encoder_config(args.model_version)
    engine = fast.engine(args.gpu, args.deterministic, encoder=model_cfg)
    files = utils.Files(args.dataset, args.dataset_version, args.model_version, args.save_model, source=args.model_file)
    data, labels, data_cfg = utils.load_windows(args.dataset, args.dataset_version)
    configs.check_fits(model_cfg, data_cfg)
    utils.check_gravity(args.dataset, args.dataset_version, data)
    checkpoint = files.checkpoint(utils.loss_weights(cfg))
    model, made = load_encoder(args, checkpoint, model_cfg)
    pretrained = made["config"]
    recorded = pretrained.get("augment_method"), pretrained.get("train", {}).get("seed")
    method = artefacts.agreed("-am", args.augument_method, recorded[0], checkpoint, AUGMENTATION)
    seed = artefacts.agreed("--seed", args.seed, recorded[1], checkpoint, cfg["seed"])

    config = {
        "dataset": args.dataset,
        "dataset_version": args.dataset_version,
        "augment_method": method,
        "copies": copy_count(method),
        "model_version": args.model_version,
        "model": model_cfg,
        "checkpoint": str(checkpoint),
        "pretrain": pretrained.get("train", {}),
        "epochs": made.get("epochs"),
        "seed": seed,
        "labels": configs.described(data_cfg),
    }
    counts = utils.counts_of(args.dataset, args.dataset_version)
    config |= {"counts": counts} if len(counts) > 1 else {}  # where one source ends and the next begins
    record = artefacts.make_record(config, [checkpoint, *files.data("data", "label")], str(engine.device))
    windows = Copies(FromFile(data, torch.device("cpu")), method, seed)  # made piece by piece
    with replacing(files.embedding(), config):
        shape = write(files, engine, model, windows, labels, record)
    copies = f"{method}: {copy_count(method)} x {len(data)} windows"
    print(f"{shape[0]} representations ({copies}) of shape {shape[1:]} in {files.embedding()}")
    return {"embed": files.embedding(), "label": files.embedding("label"), "shape": shape}


if __name__ == "__main__":
    sys.exit(run(main, get_args))
