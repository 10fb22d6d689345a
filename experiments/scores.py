"""The README's picture: accuracy by source -> target of v1, v2, a random forest and the released code.

    python -m experiments.scores

reads   docs/figures/scores.csv: a row a figure, with the command that printed it, its date and its number of runs
writes  docs/figures/scores.png, which keeps the table's SHA-256: a test tells when the table has changed since
"""

import argparse
import hashlib
import sys
from pathlib import Path

from bookkeeping import artefacts, plots
from bookkeeping.commands import Parser, UserError, run
from bookkeeping.plots import plt

TABLE = Path(__file__).resolve().parents[1] / "docs/figures/scores.csv"
MODELS = ("v2", "v1", "random forest", "released code")


def get_args(argv=None):
    return Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)


def read():
    """{(source, target): {model: row}}. Raises UserError for a figure without its command, date or runs."""
    found = {}
    for number, row in enumerate(artefacts.read_table(TABLE), 2):
        if not all(row[key].strip() for key in ("accuracy", "f1_macro", "runs", "date", "command")):
            raise UserError(f"{TABLE.name}, line {number}: a figure needs its command, date and number of runs")
        found.setdefault((row["source"], row["target"]), {})[row["model"]] = row
    return found


def draw(axis, pairs):
    """Bars in groups: of each pair the models that have a figure."""
    width = 0.8 / len(MODELS)
    for place, model in enumerate(MODELS):
        rows = [(x, pairs[pair][model]) for x, pair in enumerate(pairs) if model in pairs[pair]]
        at = [x + (place - (len(MODELS) - 1) / 2) * width for x, _ in rows]
        values = [float(row["accuracy"]) for _, row in rows]
        errors = [float(row["accuracy_sd"] or "nan") for _, row in rows]  # of the released code there is none
        axis.bar(at, values, 0.92 * width, label=model, color=plots.COLOURS[place])
        axis.errorbar(at, values, yerr=errors, fmt="none", ecolor="black", elinewidth=1, capsize=2)
        for x, value in zip(at, values, strict=True):
            axis.text(x, 0.02, f"{value:.2f}", ha="center", fontsize=8, color="white")
    axis.set_xticks(range(len(pairs)), [f"{source} → {target}" for source, target in pairs])
    axis.set(ylabel="accuracy on the target", ylim=(0, 1)), axis.grid(False, axis="x")


def main(args):
    pairs = read()
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(2, figsize=(10, 5.2), layout="constrained")
        half = -(-len(pairs) // 2)
        for axis, row in zip(axes, (list(pairs)[:half], list(pairs)[half:]), strict=True):
            draw(axis, {pair: pairs[pair] for pair in row})
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=len(MODELS))
        table = hashlib.sha256(TABLE.read_bytes()).hexdigest()
        path = plots.save(figure, TABLE.with_name("scores.png"), Source=table)
    print(f"{sum(map(len, pairs.values()))} figures of {len(pairs)} pairs in {path.relative_to(TABLE.parents[2])}")
    return path


if __name__ == "__main__":
    sys.exit(run(main, get_args))
