"""The whole method on real recordings in a few minutes: what `make demo` runs.

    python -m experiments.demo

Prepares uci (fetches 19 MB once) and a target that nothing sees in training: motion, where its windows are there or its
archive can be fetched, else a simulated one made from held-out uci users. Then, under the stem `demo`, the four scripts
for v1, the paper's method, with the short schedules of config/demo_*.json, and the last two for v2, which needs no
more, with 1200 of its 4000 steps (v2_shorter); and one table of the scores.

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
    """Run the scripts that a model version needs: (scores on the source's test part, scores on the target)."""
    common = ["-d", source, "-s", "demo", "-mv", version]
    calls = [
        ("pretraining", pretrain, [*common, "-t", "config/demo_pretrain.json"]),
        ("representations", embedding, common),
        ("classifier", classifier, [*common, "-t", "config/demo_train.json"]),
        ("target", cross_dataset_test, [*common, "-td", target]),
    ]
    results = []
    for title, script, flags in calls if version == "v1" else calls[2:]:  # v2 learns from labels alone
        print(f"\n=== {version}, {title} (python {script.__name__}.py {' '.join(flags)}) ===", flush=True)
        results.append(script.main(script.get_args(flags)))
    return results[-2:]


def main(args):
    start = time.monotonic()
    source, target = choose_pair()
    rows = []
    for version in ("v1", "v2_shorter"):
        tests = stages(version, source, target)
        names = (f"{source}, test part", f"{source} -> {target}" + (" (simulated)" if target == "sim" else ""))
        rows += [(version, name, found) for name, found in zip(names, tests, strict=True)]
    print(f"\n{'':40s}windows  accuracy  macro F1  majority class")
    for version, name, found in rows:
        scores = f"{found['accuracy']:.3f}     {found['f1_macro']:.3f}           {found['majority']:.3f}"
        print(f"{version:12s}{name:28s}{found['windows']:7d}     {scores}")
    seconds = f"{time.monotonic() - start:.0f} seconds in all"
    print(f"\nv1 after a few epochs, v2 after fewer steps, one run each; {seconds}.")
    if target == "sim":
        print("The simulated phones differ in what v2 is built to be blind to: its score there says little.")
    return {(version, name): found for version, name, found in rows}


if __name__ == "__main__":
    sys.exit(run(main, get_args))
