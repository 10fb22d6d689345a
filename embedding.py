"""Stage 2a: the representations of the source data set, its augmented copies included.

    python embedding.py -d uci

reads   saved/pretrain_base_uci_20_120/model_masked_6_1.pt, dataset/uci/{data,label}_20_120.npy
writes  embed/embed_uci_20_120.npy (6N, 120, 72) float32 and embed/label_uci_20_120.npy (6N, 120, K), a JSON beside each

The copies are those of pretraining: its augmentation and seed come from the checkpoint's JSON.
"""

import sys

from utils import make_parser, run


def get_args(argv=None):
    return make_parser(__doc__).parse_args(argv)


args = get_args() if __name__ == "__main__" else None  # before the heavy imports: --help and a typo answer at once

import numpy as np  # noqa: E402
import torch  # noqa: E402

import artefacts  # noqa: E402
import configs  # noqa: E402
import utils  # noqa: E402
from augment import Copies, copy_count  # noqa: E402
from batches import FromFile  # noqa: E402
from models import DEAD_MASKED, MaskedModel, encode  # noqa: E402


def main(args):
    if configs.method_of(args.model_version) == "v2":
        import v2  # all of -mv v2 stands there

        return v2.embed(args)
    cfg = configs.read_train_config(args)
    model_cfg = configs.read_encoder_config(args.model_version)
    if args.deterministic:
        utils.set_deterministic()
    device = utils.pick_device(args.gpu)
    data, labels, data_cfg = utils.load_windows(args.dataset, args.dataset_version)
    configs.check_fits(model_cfg, data_cfg)

    stem = utils.pretrain_stem(args, utils.pretrained_name(args))
    checkpoint = f"{stem}_masked_{utils.loss_weights(cfg)}.pt"
    repeat = f"python pretrain.py -d {args.dataset} -s {stem.name}"
    record = artefacts.load_record(checkpoint, {"augment_method": str, "train": dict, "model": dict})
    pretrained = record["config"] if record else {}
    if record:
        artefacts.check_parents(checkpoint, record, repeat)
        utils.check_same(checkpoint, pretrained, {"model": model_cfg})
    model = MaskedModel(model_cfg)
    artefacts.load_state(checkpoint, model, DEAD_MASKED, hint=f"make it with: {repeat}")
    method = utils.agreed("-am", args.augument_method, pretrained.get("augment_method"), checkpoint, "channel_aug")
    recorded_seed = pretrained.get("train", {}).get("seed")
    seed = utils.agreed("--seed", args.seed, recorded_seed, checkpoint, cfg["seed"])

    windows = Copies(FromFile(data, torch.device("cpu")), method, seed)  # made piece by piece
    embed_path, label_path = utils.embedding_paths(args)
    copies = copy_count(method)
    shape = (len(windows), model_cfg["seq_len"], model_cfg["hidden"])
    folder = f"dataset/{args.dataset}"
    made_from = [checkpoint, *(f"{folder}/{kind}_{args.dataset_version}.npy" for kind in ("data", "label"))]
    config = {
        "dataset": args.dataset, "dataset_version": args.dataset_version, "augment_method": method, "copies": copies,
        "model_version": args.model_version, "model": model_cfg, "checkpoint": checkpoint,
        "pretrain": pretrained.get("train", {}), "epochs": record.get("epochs") if record else None,
        "seed": seed,
    }  # fmt: skip
    record = artefacts.make_record(config, made_from, str(device))
    with artefacts.npy_writer(embed_path, shape, record=record) as write:
        for h in encode(model.to(device), windows):
            write(h.cpu().numpy())
    with artefacts.npy_writer(label_path, (len(windows), *labels.shape[1:]), labels.dtype, record) as write:
        for start in range(0, len(windows), 4096):
            write(labels[np.arange(start, min(start + 4096, len(windows))) % len(labels)])
    print(f"{shape[0]} representations ({method}: {copies} x {len(data)} windows) of shape {shape[1:]} in {embed_path}")
    return {"embed": embed_path, "label": label_path, "shape": shape}


if __name__ == "__main__":
    sys.exit(run(main, args))
