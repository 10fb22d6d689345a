"""Where on the body (or for which user, device) a classifier errs: scores of saved predictions by a label column.

    python -m experiments.breakdown -td dsads --by position saved/classifier_base_v2_*_uci_20_120/*_dsads.npz

reads   the predictions that cross_dataset_test.py or the baselines left (several: runs of one experiment, whose scores
        are averaged) and dataset/dsads/label_20_120.npy
prints  for each value of the column windows, accuracy, macro F1 (mean ± sample standard deviation over the files), and
        what each class is taken for most often when it is not recognised

Nothing is written. Seconds.
"""

import argparse
import sys

import numpy as np

import utils
from bookkeeping import configs, ledger
from bookkeeping.commands import Parser, UserError, a_name, a_number, run
from metrics import scores, spread


def get_args(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("files", nargs="+", metavar="NPZ", help="predictions on the same target")
    add("-td", "--target_dataset", type=a_name, required=True, help="target data set that they are of")
    add("-dv", "--dataset_version", type=a_name, default="20_120", help="rate_length of the windows (default 20_120)")
    index = a_number(int, lambda n: n >= 0, "a column's index")
    add("-l", "--label_index", type=index, default=0, help="label column that was classified")
    add("--by", type=a_name, default="position", help="label column to break down by (default position)")
    return parser.parse_args(argv)


def read(path, ids):
    """(numbers of the windows, labels, predictions) of a file of predictions; they must be of the data set at hand."""
    found = ledger.read_npz(path)
    if found is None:
        raise UserError(f"{path} is not a readable file of predictions: it is missing")
    window, label, predicted = found["window"], found["label"], found["logits"].argmax(1)
    if len(window) == 0 or window.max() >= len(ids) or (ids[window] != label).any():
        raise UserError(f"{path} holds predictions of other windows than those of -td; check -td, -dv and -l")
    return window, label, predicted


def main(args):
    entry = configs.dataset_config(args.target_dataset, args.dataset_version)
    columns = [key.removesuffix("_label_index") for key, i in entry.items() if key.endswith("_label_index") and i != -1]
    if args.by not in columns:
        raise UserError(f"--by {args.by}: {args.target_dataset} has the columns {', '.join(columns)}")
    column = entry[f"{args.by}_label_index"]
    _, labels, _ = utils.load_windows(args.target_dataset, args.dataset_version)
    path = utils.data_path(args.target_dataset, args.dataset_version, "label")
    names, groups = (configs.label_names(entry, i)[1] for i in (args.label_index, column))
    ids = utils.window_labels(labels, args.label_index, names, path)
    of = utils.window_labels(labels, column, groups, path)
    runs = [read(file, ids) for file in args.files]
    result = {}
    print(f"{args.target_dataset} by {args.by}, {len(runs)} run{'s' if len(runs) > 1 else ''}")
    for number, group in enumerate(groups):
        chosen = [(label, predicted, of[window] == number) for window, label, predicted in runs]
        made = [scores(label[rows], predicted[rows], len(names)) for label, predicted, rows in chosen if rows.any()]
        if not made:
            continue
        accuracy, f1 = (spread([m[key] for m in made]) for key in ("accuracy", "f1_macro"))
        print(f"  {group:14s} {made[0]['windows']:6d} windows  accuracy {accuracy}  macro F1 {f1}")
        confusion = np.sum([m["confusion"] for m in made], 0)
        for i, name in enumerate(names):
            wrong = confusion[i].copy()
            wrong[i] = 0
            if wrong.sum() > 0.05 * confusion[i].sum():
                shares = f"{wrong.max() / confusion[i].sum():.0%} of {name} taken for {names[wrong.argmax()]}"
                print(f"  {'':14s} recognised {confusion[i, i] / confusion[i].sum():.0%}, {shares}")
        result[group] = {key: float(np.mean([m[key] for m in made])) for key in ("accuracy", "f1_macro")}
    return result


if __name__ == "__main__":
    sys.exit(run(main, get_args))
