"""The tables of reproduce.py, made from saved/results.csv: as text, Markdown, LaTeX (booktabs) and CSV under results/.

Figures are mean ± sample standard deviation over runs (seeds). An average over pairs is taken within a run first, over
the runs that all of its pairs have, so that its spread is one between runs, not between data sets.
"""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bookkeeping import artefacts, ledger
from bookkeeping.commands import UserError
from experiments.grid import RATE, command_of, recorded_runs
from metrics import spread
from utils import sets_of

FOLDER = Path("results")
METRICS = ("accuracy", "f1_macro")
CONFIDENCE = ("temperature", "ece_uncalibrated", "ece")
NOTE = (
    "mean ± sample standard deviation over the runs (seeds); averages over pairs are taken within a run first. "
    "majority: the share of the target's most frequent class. own test part: windows of the source that were held out "
    "(with split by copy, copies of them were not). –: not run. less the first: points of macro F1 that a variant has "
    "more than the first one, paired by run, with its standard error. "
    "ECE: expected calibration error, 15 bins, with the temperature that was fitted on the source's validation part."
)


class Section(NamedTuple):
    """One table: a line of text in every cell; `ruled` are the numbers of the rows that follow a rule."""

    title: str
    header: list
    rows: list
    ruled: set


def bare(pairs):
    """Pairs whose targets' gyroscope was taken away, as `collect` names them."""
    return [(source, f"{target} without gyroscope") for source, target in pairs]


def collect(grid):
    """The rows of the grid that are there: {(variant, rate, source, target): {run: row}}.

    With them under the target None the scores on the source's own test part, as if a row of theirs.
    """
    rows, found = ledger.read_rows(), defaultdict(dict)
    for job in grid.jobs():
        for cell in grid.cells(job):
            if not (row := rows.get(grid.key(cell))):
                continue
            pair = (job.source, cell.target)
            pair = pair if cell.gyroscope else bare([pair])[0]
            found[job.variant, cell.rate, *pair][cell.run] = row
            if row.get("source_accuracy"):
                own = {metric: row[f"source_{metric}"] for metric in METRICS}
                own |= {key: row.get(key if key == "temperature" else f"source_{key}", "") for key in CONFIDENCE}
                found[job.variant, cell.rate, job.source, None][cell.run] = own
    return found


def mean_over(parts, metric):
    """Per run the mean of a metric over several {run: row}: an array of the runs that all parts have, or None.

    A row of an older version has not every metric.
    """
    if not parts:
        return None
    runs = sorted(set.intersection(*({run for run in part if part[run].get(metric, "") != ""} for part in parts)))
    return np.array([np.mean([float(part[run][metric]) for part in parts]) for run in runs]) if runs else None


class Results:
    """What is in the ledger of a grid, by variant, label rate, source and target."""

    def __init__(self, grid):
        self.grid, self.found = grid, collect(grid)
        there = set(self.found)
        self.variants = [v for v in grid.variants if any(key[0] == v for key in there)]
        self.sources = [s for s in grid.sources if any(key[2] == s for key in there)]
        self.targets = [t for t in grid.targets if any(key[3] == t for key in there)]
        self.rates = sorted({key[1] for key in there})
        self.rate = RATE if RATE in self.rates or not self.rates else self.rates[-1]

    def cells(self, variant, rate, source):
        """The grid's cells of a variant, label rate and source."""
        jobs = [job for job in self.grid.jobs() if job.variant == variant and job.source == source]
        return [cell for job in jobs for cell in self.grid.cells(job) if cell.rate == rate]

    def pairs(self, source=None):
        sources = [source] if source else self.sources
        return [(s, t) for s in sources for t in self.targets if t not in sets_of(s)]

    def values(self, variant, rate, pairs, metric):
        """mean_over some (source, target) pairs."""
        return mean_over([self.found.get((variant, rate, *pair), {}) for pair in pairs], metric)

    def difference(self, variant, rate):
        """`-0.72 ± 0.34`: points of macro F1 less the first variant's, paired by run: mean over pairs, standard error.

        Targets whose gyroscope was taken away count among the pairs where both variants were tested on them.
        """
        first, pairs = self.variants[0], self.pairs()
        pairs = pairs + [p for p in bare(pairs) if all((v, rate, *p) in self.found for v in (first, variant))]
        parts = [[self.found.get((v, rate, *pair), {}) for pair in pairs] for v in (variant, first)]
        runs = sorted(set.intersection(*map(set, parts[0] + parts[1])))
        if variant == first or len(runs) < 2:
            return ""
        ours, firsts = (mean_over([{run: part[run] for run in runs} for part in each], "f1_macro") for each in parts)
        points = 100 * (ours - firsts)
        return f"{points.mean():+.2f} ± {points.std(ddof=1) / len(runs) ** 0.5:.2f}"

    def majority(self, pairs):
        """The mean share of the targets' most frequent classes."""
        shares = {key[3]: float(next(iter(runs.values()))["majority"]) for key, runs in self.found.items() if key[3]}
        return float(np.mean([shares[target] for _, target in pairs]))

    def runs(self, variant, rate, pairs):
        """How many runs the pairs have: `3`, or `1–3` where they differ."""
        counts = [len(self.found.get((variant, rate, *pair), {})) for pair in pairs]
        return str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)}–{max(counts)}"


# ------------------------------------------------------------------------------------------------ sections


def pair_section(results, variant, rate):
    """Source → target for one variant, the averages of each source, the source's own test part."""
    rows, ruled = [], set()

    def add(name, pairs, majority=True):
        figures = [spread(results.values(variant, rate, pairs, metric)) for metric in METRICS]
        share = f"{results.majority(pairs):.3f}" if majority else ""
        rows.append([name, share, *figures, results.runs(variant, rate, pairs)])

    def add_bare(name, pairs):
        if results.values(variant, rate, bare(pairs), "accuracy") is not None:
            add(name, bare(pairs), majority=False)

    for source in results.sources:
        pairs = results.pairs(source)
        if not pairs:
            continue
        ruled.add(len(rows))
        for pair in pairs:
            add(results.grid.pair(*pair), [pair])
            add_bare("  without its gyroscope", [pair])
        add(f"{source} → average", pairs)
        add(f"{source} → own test part", [(source, None)], majority=False)
    ruled.add(len(rows))
    add("all pairs, average", results.pairs())
    add_bare("  without their gyroscopes", results.pairs())
    title = f"{results.grid.title(variant)}, label rate {rate:g}"
    return Section(title, ["source → target", "majority", "accuracy", "macro F1", "runs"], rows, ruled)


def leave_one_out_section(results, rate):
    """A row a set that was the target of all others, one where its gyroscope was taken away; the means over targets."""
    header = ["target, left out", "majority", *map(results.grid.title, results.variants), "runs"]
    pairs, rows, ruled = results.pairs(), [], set()

    def add(name, chosen, share):
        figures = [[spread(results.values(v, rate, chosen, m)) for m in METRICS] for v in results.variants]
        runs = {results.runs(variant, rate, chosen) for variant in results.variants} - {"0"}
        rows.append([name, share, *map(" / ".join, figures), ", ".join(sorted(runs))])

    several = {target: [(source, target)] for source, target in pairs} | {"mean of all": pairs}
    for name, chosen in several.items():
        ruled.add(len(rows))
        add(name, chosen, f"{results.majority(chosen):.3f}")
        if any(results.grid.is_v2(variant) for variant in results.variants):
            add("  without gyroscope", bare(chosen), "")
    return Section(f"Leave one out, label rate {rate:g}: accuracy / macro F1", header, rows, ruled)


def confidence_section(results, variant, rate):
    """Source → target for one variant: temperature and calibration error without and with it; None if there is none."""
    rows, ruled = [], set()

    def add(name, pairs):
        found = [results.values(variant, rate, pairs, key) for key in CONFIDENCE]
        rows.append([name, *map(spread, found), str(0 if found[-1] is None else len(found[-1]))])

    for source in results.sources:
        ruled.add(len(rows))
        for pair in results.pairs(source):
            add(results.grid.pair(*pair), [pair])
        add(f"{source} → own test part", [(source, None)])
    ruled.add(len(rows))
    add("all pairs, average", results.pairs())
    title = f"Confidence: {results.grid.title(variant)}, label rate {rate:g}"
    header = ["source → target", "temperature", "ECE without it", "ECE", "runs"]
    return Section(title, header, rows, ruled) if any(row[-1] != "0" for row in rows) else None


def summary(results, variant, rate):
    """The averages of one variant: accuracy from each source, accuracy and macro F1 of all pairs, own test parts."""
    by_source = [results.values(variant, rate, results.pairs(source), "accuracy") for source in results.sources]
    everything = [results.values(variant, rate, results.pairs(), metric) for metric in METRICS]
    own = results.values(variant, rate, [(source, None) for source in results.sources], "accuracy")
    shown = map(spread, [*by_source, *everything, own])
    return [*shown, results.difference(variant, rate), results.runs(variant, rate, results.pairs())]


def variant_section(results, rates, title):
    """One row for each variant, or with several label rates for each variant and rate; the averages over targets."""
    header = ["variant", "label rate"] + [f"{source} → all" for source in results.sources]
    header += ["all pairs", "all pairs, macro F1", "own test part", "less the first", "runs"]
    shares = [f"{results.majority(results.pairs(source)):.3f}" for source in results.sources]
    rows = [["most frequent class", "", *shares, f"{results.majority(results.pairs()):.3f}", "", "", "", ""]]
    ruled = {1}
    for variant in results.variants:
        mine = [r for r in rates if any(key[:2] == (variant, r) for key in results.found)]
        if len(rates) > 1:
            if len(mine) < 2:
                continue
            ruled.add(len(rows))
        rows += [[results.grid.title(variant), f"{r:g}", *summary(results, variant, r)] for r in mine]
    return Section(title, header, rows, ruled)


def sections(results):
    """All tables of the grid."""
    if results.grid.leave_one_out:
        return [leave_one_out_section(results, rate) for rate in results.rates]
    detailed = [v for i, v in enumerate(results.variants) if i == 0 or v == "copy"]
    made = [pair_section(results, variant, results.rate) for variant in detailed]
    made += filter(None, [confidence_section(results, variant, results.rate) for variant in detailed])
    if len(results.variants) > 1:
        title = f"Variants: accuracy (and macro F1) averaged over targets, label rate {results.rate:g}"
        made.append(variant_section(results, [results.rate], title))
    if len(results.rates) > 1:
        made.append(variant_section(results, results.rates, "Label rates: accuracy averaged over targets"))
    return made


def pretraining_epochs(results):
    """How long the sources were pretrained, as the ledger has it: `pretraining epochs: uci 1600, motion 1600`."""
    epochs = defaultdict(set)
    for (variant, _, source, target), runs in results.found.items():
        for row in runs.values():
            if target is not None and not results.grid.is_baseline(variant) and variant != "random" and row["epochs"]:
                epochs[source].add(int(row["epochs"]))
    text = ", ".join(f"{s} {'/'.join(map(str, sorted(epochs[s])))}" for s in results.sources if epochs[s])
    return f"pretraining epochs: {text or 'none'}"


def facts(results):
    """What the numbers rest on: epochs, seeds, and the command that makes them."""
    seeds = {run for runs in results.found.values() for run in runs}
    runs = ", ".join(str(a) if a == b else f"{a}+{b}" for a, b in sorted(seeds))
    of = f"{pretraining_epochs(results)}; seeds (pretraining+classifier where they differ): {runs}."
    return f"{of}\n{results.grid.command}"


# ----------------------------------------------------------------------------------------------- renderers


def as_text(section):
    widths = [max(len(row[i]) for row in [section.header, *section.rows]) for i in range(len(section.header))]

    def line(row):
        return "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))

    rule = "-" * (sum(widths) + 2 * len(widths) - 2)
    lines = [section.title, "=" * len(rule), line(section.header)]
    for number, row in enumerate(section.rows):
        lines += [rule] if number in section.ruled or number == 0 else []
        lines.append(line(row).rstrip())
    return "\n".join(lines)


def as_markdown(section):
    lines = [f"**{section.title}**", "", "| " + " | ".join(section.header) + " |"]
    lines.append("|" + "|".join("-" if i == 0 else "-:" for i in range(len(section.header))) + "|")
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in section.rows])


def as_latex(section):
    signs = {"\\": r"\textbackslash{}", "→": r"$\to$", "±": r"$\pm$", "–": "--"} | {c: rf"\{c}" for c in "&%_#"}

    def escape(text):
        return "".join(signs.get(c, c) for c in text)

    lines = [r"\begin{table}", r"\centering", rf"\caption{{{escape(section.title)}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * (len(section.header) - 1)}}}", r"\toprule"]
    lines.append(" & ".join(map(escape, section.header)) + r" \\")
    for number, row in enumerate(section.rows):
        lines += [r"\midrule"] if number in section.ruled or number == 0 else []
        lines.append(" & ".join(map(escape, row)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"])


def flat(results):
    """Every mean and standard deviation as numbers, one row for each variant, label rate and pair or average."""
    rows = []
    for variant in results.variants:
        for rate in results.rates:
            groups = {pair: [pair] for pair in results.pairs() + bare(results.pairs())}
            groups |= {(s, "average"): results.pairs(s) for s in results.sources}
            groups |= {(s, "own test part"): [(s, None)] for s in results.sources}
            groups["all", "average"] = results.pairs()
            groups["all", "average without gyroscope"] = bare(results.pairs())
            for (source, target), pairs in groups.items():
                if not pairs or (accuracy := results.values(variant, rate, pairs, "accuracy")) is None:
                    continue
                row = {"variant": variant, "label_rate": f"{rate:g}", "source": source, "target": target}
                row["majority"] = "" if pairs[0][1] is None else f"{results.majority(pairs):.6f}"
                for name in (*METRICS, *CONFIDENCE):
                    values = results.values(variant, rate, pairs, name)
                    row[f"{name}_mean"] = "" if values is None else f"{values.mean():.6f}"
                    row[f"{name}_sd"] = "" if values is None or len(values) < 2 else f"{values.std(ddof=1):.6f}"
                rows.append(row | {"runs": len(accuracy)})
    return rows


def results_of(grid):
    """The grid's Results. Raises UserError, with the grids that were run here, if it has no row."""
    results = Results(grid)
    if not results.pairs():
        there = "; ".join(map(command_of, recorded_runs())) or "none"
        raise UserError(f"no row of {ledger.PATH} belongs to this grid ({grid.command}); grids that were run: {there}")
    return results


def write(grid):
    """Print the tables and write results/table_NAME.{txt,md,tex,csv}; returns the text. No row is an error."""
    results, stem = results_of(grid), f"table_{grid.name}"
    made, note = sections(results), NOTE + "\n" + facts(results)
    text = "\n\n".join([*map(as_text, made), note]) + "\n"
    markdown = "\n\n".join([*map(as_markdown, made), note]) + "\n"
    latex = "\n\n".join(["% needs \\usepackage{booktabs}", *map(as_latex, made)])
    latex += "\n\n" + "\n".join(f"% {line}" for line in note.splitlines()) + "\n"
    for ending, content in (("txt", text), ("md", markdown), ("tex", latex)):
        with artefacts.atomic(FOLDER / f"{stem}.{ending}") as handle:
            handle.write(content.encode())
    artefacts.save_table(FOLDER / f"{stem}.csv", flat(results))
    print(f"\n{text}\nalso as results/{stem}.txt, .md, .tex and .csv")
    return text
