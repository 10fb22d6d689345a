"""The whole method on real recordings in a few minutes: what `make demo` runs.

    python -m experiments.demo

Prepares uci (fetches 19 MB once) and a target that nothing sees in training: motion, where its windows are there or its
archive can be fetched, else a simulated one made from held-out uci users. Then the four scripts twice, under the stem
`demo`: v1, the paper's method, with the short schedules of config/demo_*.json, and v2; and one table of the scores.

v1's are the scores of a few epochs, to see everything work. README.md has those of the full schedule.
"""

import argparse
import sys
import time

import classifier
import cross_dataset_test
import embedding
import pretrain
import utils
from bookkeeping.commands import Parser, UserError, run
from dataset import prepare


def get_args(argv=None):
    return Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)


def prepared(name):
    """Make sure that a data set's windows are there; raises UserError if they can be neither found nor made."""
    if not utils.data_path(name, "20_120").exists():
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


def stages(version, source, target):
    """Run the four scripts for a model version: (scores on the source's test part, scores on the target)."""
    common, short = ["-d", source, "-s", "demo", "-mv", version], ["-t", "config/demo_train.json"]
    pretraining = ["-t", "config/demo_pretrain.json"] if version == "v1" else []
    calls = [
        ("pretraining", pretrain, [*common, *pretraining]),
        ("representations", embedding, common),
        ("classifier", classifier, [*common, *(short if version == "v1" else [])]),
        ("target", cross_dataset_test, [*common, "-td", target]),
    ]
    if version == "v2":
        del calls[:2]  # it learns from labels alone
    results = []
    for title, script, flags in calls:
        print(f"\n=== {version}, {title} (python {script.__name__}.py {' '.join(flags)}) ===", flush=True)
        results.append(script.main(script.get_args(flags)))
    return results[-2:]


def main(args):
    start = time.monotonic()
    source, target = choose_pair()
    rows = []
    for version in ("v1", "v2"):
        tests = stages(version, source, target)
        names = (f"{source}, test part", f"{source} -> {target}" + (" (simulated)" if target == "sim" else ""))
        rows += [(version, name, found) for name, found in zip(names, tests, strict=True)]
    print(f"\n{'':34s}windows  accuracy  macro F1  majority class")
    for version, name, found in rows:
        scores = f"{found['accuracy']:.3f}     {found['f1_macro']:.3f}           {found['majority']:.3f}"
        print(f"{version}  {name:30s}{found['windows']:7d}     {scores}")
    print(f"\nv1 after a few epochs, v2 as it is, one run each; {time.monotonic() - start:.0f} seconds in all.")
    if target == "sim":
        print("The simulated phones differ in what v2 is built to be blind to: its score there says little.")
    return {(version, name): found for version, name, found in rows}


if __name__ == "__main__":
    sys.exit(run(main, get_args))
