"""The whole method on real recordings in a few minutes: what `make demo` runs.

    python demo.py

Prepares uci (fetches 19 MB once) and a target that the method never sees in training: motion, where its windows are
there or its archive can be fetched, else a simulated one made from held-out uci users. Then the four scripts with the
short schedules of config/demo_*.json, under the stem `demo`, and a table of the scores.

These are the scores of a few epochs, to see everything work. README.md has those of the full schedule.
"""

import argparse
import sys
import time
from pathlib import Path

from bookkeeping.commands import Parser, UserError, run


def get_args(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return parser.parse_args(argv)


def prepared(name):
    """Make sure that a data set's windows are there; raises UserError if they can be neither found nor made."""
    from dataset import prepare

    if not Path(f"dataset/{name}/data_20_120.npy").exists():
        prepare.main(prepare.get_args(["-d", name]))


def choose_pair():
    """(source, target): uci and motion if motion can be had, else the simulated pair."""
    prepared("uci")
    try:
        prepared("motion")
        return "uci", "motion"
    except UserError as error:
        print(f"motion cannot be had here ({error})\nthe target is simulated instead")
    prepared("sim")
    return "uci20", "sim"


def main(args):
    import torch

    import classifier
    import cross_dataset_test
    import embedding
    import pretrain

    start = time.monotonic()
    source, target = choose_pair()
    common = ["-d", source, "-s", "demo"]
    stages = [
        ("1 of 4: pretraining", pretrain, [*common, "-t", "config/demo_pretrain.json"]),
        ("2 of 4: representations", embedding, common),
        ("3 of 4: classifier", classifier, [*common, "-t", "config/demo_train.json"]),
        ("4 of 4: target", cross_dataset_test, [*common, "-td", target]),
    ]
    results = []
    for title, script, flags in stages:
        print(f"\n== {title}: python {script.__name__}.py {' '.join(flags)}")
        torch.set_float32_matmul_precision("highest")  # each stage starts as in a process of its own
        results.append(script.main(script.get_args(flags)))

    simulated = " (simulated)" if target == "sim" else ""
    print(f"\n{'':28}windows  accuracy  macro F1  majority class")
    for name, result in ((f"{source}, test part", results[2]), (f"{source} -> {target}{simulated}", results[3])):
        print(f"{name:28}{result['windows']:7}  {result['accuracy']:8.3f}  {result['f1_macro']:8.3f}"
              f"  {result['majority']:14.3f}")  # fmt: skip
    print(f"\nartefacts: {results[0]['paths'][0]}, {results[1]['embed']},\n{results[2]['path']}, saved/results.csv")
    print(f"{time.monotonic() - start:.0f} s in all; a few epochs only, see README.md for the full schedule's scores")
    return results


if __name__ == "__main__":
    sys.exit(run(main, get_args))
