"""The model that comes with the project: version v2 on all labels of several sets, into saved/ready/.

    python -m experiments.ready                 uci, motion and dsads, which must be prepared

reads   dataset/NAME/{data,label}_20_120.npy, saved/ready/TERMS.md
writes  saved/ready/model.pt, and model.json beside it: the configuration, the temperature, what it was made from, and
        its terms in a line; on the way saved/classifier_base_v2_transformer_uci+motion+dsads_20_120/ready_*

It is classifier.py -mv v2 -lr 1: four fifths of the windows train, all of them with their labels; a tenth fits the
temperature, a tenth gives the scores that are printed, of the same people. uschad stays out: its scores tell how the
model does on people and devices it has never seen.
"""

import argparse
import re
import sys
from pathlib import Path

import torch

import classifier
import inference
import utils
from bookkeeping import artefacts
from bookkeeping.commands import Parser, UserError, a_device, a_name, a_source, run

FOLDER = Path("saved/ready")
SETS = "uci,motion,dsads"
CONFIG = "config/pretrain_model.json"
LARGEST = 1_500_000  # bytes of the folder: every clone carries it


def get_args(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-d", "--dataset", type=a_source, default=a_source(SETS), help=f"what it is trained on (default {SETS})")
    add("-mv", "--model_version", type=a_name, default="v2", help="an entry with the method v2 (default v2)")
    add("-t", "--train_cfg", help="training configuration (default config/train.json)")
    add("-g", "--gpu", type=a_device, help="index of the GPU, or cpu (default: the first GPU, else the CPU)")
    add("--restart", action="store_true", help="start afresh where an interrupted run left its state")
    add("--quiet", action="store_true", help="no progress bar")
    return parser.parse_args(argv)


def terms(sets):
    """The terms in a line: the first paragraph of TERMS.md. Raises UserError for a set that it has no section of."""
    path = FOLDER / "TERMS.md"
    if not path.is_file():
        raise UserError(f"{path} is missing; write down there under what terms each set may be used")
    text = path.read_text(encoding="utf-8")
    if absent := [name for name in sets if not re.search(rf"^## {re.escape(name)}$", text, re.MULTILINE)]:
        raise UserError(f"{path} has no section '## {absent[0]}': write down under what terms that set may be used")
    return " ".join(text.split("\n\n")[1].split())


def main(args):
    line = terms(utils.sets_of(args.dataset))
    flags = ["-mv", args.model_version, "-d", args.dataset, "-s", "ready", "-lr", "1"]
    flags += ["-t", args.train_cfg] if args.train_cfg else []
    flags += ["-g", str(args.gpu)] if args.gpu is not None else []
    flags += [f"--{flag}" for flag in ("restart", "quiet") if getattr(args, flag)]
    train_args = classifier.get_args(flags)
    result = classifier.main(train_args)
    record = artefacts.load_record(result["path"])
    state = torch.load(result["path"], map_location="cpu", weights_only=True)
    size = sum(tensor.nbytes for tensor in state.values())
    if size > LARGEST:
        more = f"more than the {LARGEST} that every clone may carry"
        raise UserError(f"{result['path']} has {size} bytes of weights, {more}; lower 'members' in {CONFIG}")
    path = FOLDER / "model.pt"
    more = {key: value for key, value in record.items() if key not in ("artefact", "fingerprint")}
    artefacts.save_state(path, state, more | {"terms": line})
    inference.load_ready(path=path)  # as it will be read
    total = sum(file.stat().st_size for file in FOLDER.iterdir())
    print(f"written: {path}, {total / 1e6:.2f} MB in {FOLDER}; {line}")
    return result | {"path": path}


if __name__ == "__main__":
    sys.exit(run(main, get_args))
