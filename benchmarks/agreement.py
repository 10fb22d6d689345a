"""Plain and fast path side by side: the same validation losses, and cross-dataset accuracy within the seeds' spread.
With `--paths fast bf16` the fast path in bfloat16 too, where the CPU has AMX.

    python -m benchmarks.agreement --epochs 8 --windows 300
    python -m benchmarks.agreement --epochs 16 --classifier_epochs 15 --batch_sizes 128 32 --tolerance 5e-2

Trains the paths on a short schedule for several seeds, in a temporary folder, and takes each through all four scripts
on the CPU. Prints a table, writes results/benchmark_agreement.json, and ends with an error if a validation loss differs
by more than --tolerance (relative), or the mean accuracies by more than the spread of the plain path's seeds.
"""

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import classifier
import cross_dataset_test
import embedding
import pretrain
import utils
from bookkeeping import artefacts
from bookkeeping.commands import Parser, UserError, run

ROOT = Path(__file__).resolve().parents[1]


def get_args(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-d", "--dataset", default="uci", help="source data set (default uci)")
    parser.add_argument("-td", "--target_dataset", default="motion", help="target data set (default motion)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[3431, 3432, 3433], help="default 3431 3432 3433")
    parser.add_argument("--epochs", type=int, default=8, help="epochs, half of them with both losses (default 8)")
    parser.add_argument("--classifier_epochs", type=int, default=10, help="default 10")
    parser.add_argument("--batch_sizes", type=int, nargs=2, default=[512, 128], help="default 512 128, as in config/")
    parser.add_argument("--windows", type=int, help="thin each data set out to about this many windows")
    parser.add_argument("--paths", nargs="+", choices=("fast", "bf16"), default=["fast"], help="beside the plain one")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="of validation losses (default 1e-3)")
    return parser.parse_args(argv)


def lay_out(folder, args):
    """A project folder: configurations of the short schedule, and the two data sets, thinned out."""
    (folder / "dataset").mkdir()
    for name in ("config", "dataset/data_config.json"):
        (folder / name).symlink_to(ROOT / name)
    for name in {args.dataset, args.target_dataset}:
        data, labels, _ = utils.load_windows(name, "20_120")
        every = max(1, len(data) // args.windows) if args.windows else 1
        for kind, array in (("data", data), ("label", labels)):
            artefacts.save_npy(folder / f"dataset/{name}/{kind}_20_120.npy", np.asarray(array)[::every])
    short = {"n_epochs": args.epochs, "n_epochs_cl": args.epochs // 2, "batch_size": args.batch_sizes[0]}
    labelled = {"n_epochs": args.classifier_epochs, "batch_size": args.batch_sizes[1]}
    for name, change in (("pretrain", short), ("train", labelled)):
        artefacts.save_json(folder / f"{name}.json", json.loads((ROOT / f"config/{name}.json").read_text()) | change)


def one_run(args, path, seed):
    """The four scripts on one path: validation losses of all epochs, accuracy on the target, seconds of pretraining."""
    common = ["-d", args.dataset, "-s", f"{path}{seed}"]
    seeded = [*common, "--seed", str(seed), "-g", "cpu"]
    plain = ["--plain"] if path == "plain" else []
    precision = ["--precision", "bf16"] if path == "bf16" else []
    start = time.perf_counter()
    trained = pretrain.main(pretrain.get_args([*seeded, "-t", "pretrain.json", "--quiet", *plain, *precision]))
    seconds = time.perf_counter() - start
    embedding.main(embedding.get_args([*common, "-g", "cpu"]))
    classifier.main(classifier.get_args([*seeded, "-t", "train.json", "--quiet", *precision]))
    tested = cross_dataset_test.main(cross_dataset_test.get_args([*common, "-g", "cpu", "-td", args.target_dataset]))
    losses = [[row["val_masked"], row["val_contrastive"]] for row in trained["history"]]
    return {"path": path, "seed": seed, "losses": losses, "accuracy": tested["accuracy"], "seconds": seconds}


def main(args):
    rows = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(ROOT):
        lay_out(Path(folder), args)
        os.chdir(folder)
        for seed in args.seeds:
            for path in ("plain", *args.paths):
                with contextlib.redirect_stdout(io.StringIO()):
                    rows.append(one_run(args, path, seed))
    runs = {path: [row for row in rows if row["path"] == path] for path in ("plain", *args.paths)}
    found = {path: compare(runs["plain"], runs[path], path, args) for path in args.paths}
    result = {"runs": rows, "tolerance": args.tolerance, "paths": found}
    artefacts.save_json(ROOT / "results/benchmark_agreement.json", result)
    for path, its in found.items():
        if not its["agree"]:
            raise UserError(f"{path} does not agree: losses to {its['furthest']:.1e}, accuracies to {its['apart']:.3f}")
    print("they agree")
    return result


def compare(plain, other, path, args):
    """Print the runs of a path beside the plain ones: how far losses and accuracies are apart, and if they agree."""
    print(f"\n| seed | masked, plain | {path} | contrastive, plain | {path} | furthest | accuracy, plain | {path} |")
    print("|-|-|-|-|-|-|-|-|")
    furthest = []
    for a, b in zip(plain, other, strict=True):
        ours, theirs = np.array(b["losses"]), np.array(a["losses"])
        furthest.append(float((np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-12)).max()))
        losses = " | ".join(f"{p:.5f} | {f:.5f}" for p, f in zip(theirs[-1], ours[-1], strict=True))
        print(f"| {a['seed']} | {losses} | {furthest[-1]:.1e} | {a['accuracy']:.3f} | {b['accuracy']:.3f} |")
    accuracies = [np.array([row["accuracy"] for row in part]) for part in (plain, other)]
    apart, spread = float(abs(accuracies[0].mean() - accuracies[1].mean())), float(np.ptp(accuracies[0]))
    print(f"validation losses of the last of {args.epochs} epochs; furthest: relative, over all epochs and both losses")
    seconds = [sum(row["seconds"] for row in part) for part in (plain, other)]
    means = f"mean accuracy {accuracies[0].mean():.3f} plain, {accuracies[1].mean():.3f} {path}"
    took = f"pretraining took {seconds[0]:.0f} s plain, {seconds[1]:.0f} s {path}"
    print(f"{means}; the plain path's seeds spread over {spread:.3f}; {took}")
    agree = all(each <= args.tolerance for each in furthest) and apart <= spread  # a NaN does not
    return {"furthest": max(furthest), "apart": apart, "agree": agree}


if __name__ == "__main__":
    sys.exit(run(main, get_args))
