"""The figures of reproduce.py, drawn from files that are there: predictions, loss tables, rows, pretrained models.

    python reproduce.py --figures

writes under results/, NAME being the grid's as in its tables
  confusion_NAME_SOURCE_TARGET.png        what each activity of the target is taken for, all runs together
  reliability_NAME_SOURCE_TARGET.png      how often the classifier is right at each confidence, and what abstaining does
  losses_NAME_SOURCE.png                  pretraining and classifier losses by epoch
  label_rate_NAME.png                     accuracy against label rate (where several were run)
  ablation_NAME.png                       the variants side by side (where several were run)
  representations_NAME_SOURCE_TARGET.png  the representations of source and target in two dimensions
  left_out_NAME.png                       instead of all these for --leave_one_out: scores on the set that was left out

Lines and bars are means over runs (seeds), bands and error bars ± one sample standard deviation between runs.
"""

import csv
from pathlib import Path

import matplotlib.pyplot as plt
import matplotlib.ticker
import numpy as np

import metrics
from bookkeeping import ledger, plots
from bookkeeping.plots import COLOURS
from experiments import representations
from experiments.jobs import current, is_there
from experiments.table import METRICS, mean_over, pretraining_epochs, results_of
from metrics import scores, spread

NAMES = {"accuracy": "accuracy", "f1_macro": "macro F1"}


def save(results, figure, kind, made, *sets):
    """Write a figure under results/, with the grid's name and those of the data sets in its own; note it in `made`."""
    name = "_".join([kind, results.grid.name, *sets])
    made.append(str(plots.save(figure, Path("results") / f"{name}.png")))


def runs_text(count):
    return f"{count} run" + ("s" if count != 1 else "")


def mean_text(count):
    return ("mean of " if count > 1 else "") + runs_text(count)


def saved_predictions(results, variant, source, target):
    """What is there of a pair's runs: a list of (labels (n,), logits (n, K), temperature)."""
    grid, found = results.grid, []
    for cell in results.cells(variant, results.rate, source):
        if cell.target != target or not cell.gyroscope:
            continue
        npz = grid.predictions(cell)
        saved = ledger.read_predictions(npz, grid.key(cell))
        if saved is not None:
            found.append((*saved[1:], ledger.read_temperature(npz)))
    return found


# ------------------------------------------------------------------------------------------------ confusion


def confusion(results, variant, source, target, made):
    """Rows: the true activity; the share of it and the number of windows, the mean over runs, in each square."""
    grid = results.grid
    names = grid.classes(source)
    saved = saved_predictions(results, variant, source, target)
    matrices = [scores(labels, logits.argmax(1), len(names))["confusion"] for labels, logits, _ in saved]
    if not matrices:
        return
    counts = np.mean(matrices, axis=0)  # (true, predicted)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    few, K = len(names) <= 6, len(names)
    side = min(0.48 * K, 48)  # inches; beyond 100 classes the squares shrink, and numbers would not fit into them
    figure, axis = plt.subplots(figsize=(4.6, 4.0) if few else (side + 0.6, side))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), share in np.ndenumerate(shares):
        text, colour = f"{share:.0%}\n{counts[row, column]:.0f}", "white" if share > 0.6 else "black"
        if few or (counts[row, column] and K <= 100):
            axis.text(column, row, text, ha="center", va="center", fontsize=9 if few else 7.5, color=colour)
    turned = {} if few else {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
    wrapped = [name.replace("&", "&\n") if few else name for name in names]
    axis.set_xticks(range(K), wrapped, fontsize=9, **turned), axis.set_yticks(range(K), wrapped, fontsize=9)
    axis.set_xlabel("predicted activity"), axis.set_ylabel("true activity")
    axis.grid(False), axis.spines[:].set_visible(False), axis.tick_params(length=0)
    accuracy = np.trace(counts) / counts.sum()
    title = f"{grid.title(variant)}, {grid.pair(source, target)}: accuracy {accuracy:.3f}"
    axis.set_title(f"{title}\nshare and number of windows, {mean_text(len(matrices))}", fontsize=10)
    save(results, figure, "confusion", made, source, target)


# ----------------------------------------------------------------------------------------------- confidence


def reliability(results, variant, source, target, made):
    """Accuracy by confidence without and with the temperature, all runs' windows together; abstention by threshold."""
    saved = saved_predictions(results, variant, source, target)
    if not saved:
        return
    labels = np.concatenate([labels for labels, _, _ in saved])
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.7), layout="constrained")
    edges = np.linspace(0, 1, metrics.BINS + 1)
    titles = ("as trained", "with the source's temperature")
    for axis, title in zip(axes, titles, strict=False):
        parts = [metrics.probabilities(z, t if title == titles[1] or t is None else 1.0) for _, z, t in saved]
        error = np.array([metrics.ece(p, y) for p, (y, _, _) in zip(parts, saved, strict=True)])
        probabilities = np.concatenate(parts)
        count, confidence, accuracy = metrics.reliability(probabilities, labels)
        bars = {"align": "edge", "color": "#999999", "alpha": 0.45, "label": "share of windows"}
        axis.bar(edges[:-1], count / count.sum(), 1 / metrics.BINS, **bars)
        axis.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="right as often as confident")
        shown = count >= 10  # of fewer the share that is right says nothing
        style = {"marker": "o", "markersize": 4, "color": COLOURS[0]}
        axis.plot(confidence[shown], accuracy[shown], label="accuracy (bins of 10 or more)", **style)
        axis.set_title(f"{title}: ECE {spread(error)}", fontsize=10), axis.set_xlabel("confidence (top probability)")
    thresholds = np.linspace(0, 1, 201)
    kept = np.array([metrics.kept(probabilities, threshold) for threshold in thresholds])
    right = probabilities.argmax(1) == labels
    with_any = kept.any(1)
    axes[2].plot(thresholds, kept.mean(1), color=COLOURS[1], label="coverage: share of windows kept")
    accuracy = (kept & right).sum(1)[with_any] / kept.sum(1)[with_any]
    axes[2].plot(thresholds[with_any], accuracy, color=COLOURS[0], label="accuracy of those kept")
    axes[2].set_title("abstaining, with the temperature", fontsize=10), axes[2].set_xlabel("threshold of confidence")
    for axis in axes:
        axis.set_xlim(0, 1), axis.set_ylim(0, 1.02)
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=8, ncols=2 if axis is not axes[2] else 1)
    title = f"{results.grid.title(variant)}, {results.grid.pair(source, target)}"
    figure.suptitle(f"{title}: {runs_text(len(saved))}, {len(labels)} windows together", fontsize=10)
    save(results, figure, "reliability", made, source, target)


# --------------------------------------------------------------------------------------------------- losses


def read_losses(paths):
    """The loss tables of several runs: {column: (runs, epochs)}, cut to the shortest; {} if there are none."""
    tables = []
    for path in filter(Path.exists, paths):
        with open(path, newline="") as handle:
            tables.append(list(csv.DictReader(handle)))
    if not tables:
        return {}
    length = min(map(len, tables))
    return {name: np.array([[float(row[name]) for row in t[:length]] for t in tables]) for name in tables[0][0]}


def band(axis, x, values, label, **style):
    """A mean line with a band of ± one standard deviation; values (runs, x), NaN where there is none."""
    values = np.asarray(values, dtype=float)
    mean = values.mean(0)
    (line,) = axis.plot(x, mean, label=label, **style)
    if len(values) > 1:
        sd = values.std(0, ddof=1)
        axis.fill_between(x, mean - sd, mean + sd, color=line.get_color(), alpha=0.18, linewidth=0)
    return line


def loss_curves(results, variant, source, made):
    grid = results.grid
    cells = {cell.run: cell for cell in results.cells(variant, results.rate, source)}.values()
    jobs = [job for job in dict.fromkeys(cell.job for cell in cells) if is_there(grid, job)]
    losses = read_losses([grid.files(job).pretraining("losses", grid.weights(job)) for job in jobs])
    trained = [cell for cell in cells if current(grid.classifier_path(cell), grid.classifier_config(cell))]
    classifier = read_losses([grid.classifier_path(cell, "transformer_losses.csv") for cell in trained])
    if not losses or not classifier:
        return
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
    epochs = losses["epoch"][0]
    joint = (losses["train_contrastive"] > 0).all(0)
    for axis, name in zip(axes, ("masked", "contrastive"), strict=False):
        shown = joint if name == "contrastive" else np.ones_like(joint)
        for part, label, colour in (("train", "training", COLOURS[0]), ("val", "validation", COLOURS[1])):
            band(axis, epochs[shown], losses[f"{part}_{name}"][:, shown], label, color=colour)
        axis.set_xlabel("pretraining epoch"), axis.set_title(f"{name} loss"), axis.set_xlim(0, epochs[-1])
        if joint.any() and not joint.all():
            start = epochs[joint][0]
            axis.axvline(start, color="grey", linestyle=":", linewidth=1.2)
            place = {"xycoords": ("data", "axes fraction"), "xytext": (-3, -3), "textcoords": "offset points"}
            style = {"rotation": 90, "ha": "right", "va": "top", "fontsize": 8, "color": "grey"}
            axis.annotate("both losses from here", (start, 1), **place, **style)
    for part, label, colour in (("train", "training", COLOURS[0]), ("val", "validation", COLOURS[1])):
        band(axes[2], classifier["epoch"][0], classifier[f"{part}_loss"], label, color=colour)
    axes[2].set_xlabel("classifier epoch"), axes[2].set_title(f"cross-entropy, label rate {results.rate:g}")
    axes[0].set_ylabel("loss")
    figure.legend(*axes[2].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    for axis in axes:
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6, integer=True))
    count = len(losses["epoch"])
    spread_text = ", band ± 1 standard deviation" if count > 1 else ""
    figure.suptitle(f"{grid.title(variant)} on {source}: {mean_text(count)}{spread_text}")
    save(results, figure, "losses", made, source)


# ------------------------------------------------------------------------------------- label rates, ablation


def label_rates(results, made):
    """One panel a pair: accuracy against label rate, a line for each variant that has several."""
    pairs, grid = results.pairs(), results.grid
    lines = {}
    for variant in results.variants:
        rates = [r for r in results.rates if any((variant, r, *pair) in results.found for pair in pairs)]
        if len(rates) > 1:
            lines[variant] = rates
    if not lines:
        return
    columns = min(3, len(pairs))
    rows = -(-len(pairs) // columns)
    how = {"sharex": True, "sharey": True, "squeeze": False, "layout": "constrained"}
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.8 * rows + 0.6), **how)
    for axis, pair in zip(axes.flat, pairs, strict=False):
        for number, (variant, rates) in enumerate(lines.items()):
            found = [(r, results.values(variant, r, [pair], "accuracy")) for r in rates]
            found = [(r, values) for r, values in found if values is not None]
            if not found:
                continue
            x = [r for r, _ in found]
            mean = np.array([values.mean() for _, values in found])
            sd = np.array([values.std(ddof=1) if len(values) > 1 else 0 for _, values in found])
            colour = COLOURS[number % len(COLOURS)]
            axis.plot(x, mean, marker="osD^vPX*"[number % 8], markersize=4, color=colour, label=grid.title(variant))
            axis.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.18, linewidth=0)
        axis.axhline(results.majority([pair]), color="grey", linestyle="--", linewidth=1, label="most frequent class")
        axis.set_xscale("log"), axis.set_title(grid.pair(*pair))
        axis.set_xticks(results.rates, [f"{r:.3g}" for r in results.rates]), axis.minorticks_off()
    for number, axis in enumerate(axes.flat):
        axis.set_visible(number < len(pairs))
        if number < len(pairs) <= number + columns:  # nothing below it carries the numbers
            axis.tick_params(labelbottom=True)
    figure.supxlabel("label rate: share of the source's training windows whose labels are seen")
    figure.supylabel("accuracy on the target")
    labelled = [axis.get_legend_handles_labels() for axis in axes.flat]
    handles = {text: handle for found, texts in labelled for handle, text in zip(found, texts, strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=4, fontsize=9)
    save(results, figure, "label_rate", made)


def ablation(results, made):
    """Accuracy and macro F1 of every variant, averaged over the pairs that all variants have."""
    if len(results.variants) < 2:
        return
    grid, rate = results.grid, results.rate
    found = [{pair for pair in results.pairs() if (v, rate, *pair) in results.found} for v in results.variants]
    variants = [v for v, there in zip(results.variants, found, strict=True) if there]
    pairs = sorted(set.intersection(*filter(None, found)))
    if len(variants) < 2 or not pairs:
        return
    figure, axes = plt.subplots(1, 2, figsize=(11, 0.4 * len(variants) + 1.8), sharey=True, layout="constrained")
    y = np.arange(len(variants))[::-1]
    for axis, metric in zip(axes, METRICS, strict=True):
        for place, variant in zip(y, variants, strict=True):
            parts = [results.found[variant, rate, *pair] for pair in pairs]
            values = mean_over(parts, metric)
            if values is None:
                continue
            colour = COLOURS[1] if grid.labels_only(variant) else COLOURS[0]
            axis.barh(place, values.mean(), 0.72, color=colour, alpha=0.5)
            if len(values) > 1:
                axis.errorbar(values.mean(), place + 0.15, xerr=values.std(ddof=1), color="black", capsize=3, lw=1.2)
            runs = set.intersection(*map(set, parts))  # those of the bar
            single = [np.mean([float(part[run][metric]) for run in runs]) for part in parts]
            axis.plot(single, np.full(len(single), place - 0.18), "o", color="black", mfc="white", markersize=3.5)
            axis.text(1.02, place, spread(values), va="center", fontsize=9, transform=axis.get_yaxis_transform())
        axis.set_xlim(0, 1), axis.set_xlabel(f"{NAMES[metric]} on the target"), axis.grid(False, axis="y")
    share = results.majority(pairs)
    axes[0].axvline(share, color="grey", linestyle="--", linewidth=1)
    style = {"color": "grey", "fontsize": 8, "ha": "center", "va": "bottom"}
    axes[0].text(share, 1.0, "most frequent class", transform=axes[0].get_xaxis_transform(), **style)
    axes[0].set_yticks(y, [grid.title(variant) for variant in variants])
    bars = f"bar, mean over {len(pairs)} pairs and the runs; whisker, ± 1 standard deviation between runs"
    dots = f"dots, single pairs; orange, trained with labels only; {pretraining_epochs(results)}"
    figure.suptitle(f"Variants at label rate {rate:g}: {bars};\n{dots}", fontsize=10)
    save(results, figure, "ablation", made)


def left_out(results, made):
    """Accuracy and macro F1 on each set that was the target of all others, a bar a variant."""
    pairs, variants = results.pairs(), results.variants
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True, layout="constrained")
    width = 0.8 / len(variants)
    for axis, metric in zip(axes, METRICS, strict=True):
        for number, variant in enumerate(variants):
            for place, pair in enumerate(pairs):
                values = results.values(variant, results.rate, [pair], metric)
                if values is None:
                    continue
                at, style = place + (number - (len(variants) - 1) / 2) * width, {"color": COLOURS[number % 8]}
                axis.bar(at, values.mean(), 0.92 * width, label=results.grid.title(variant), **style)
                if len(values) > 1:
                    axis.errorbar(at, values.mean(), yerr=values.std(ddof=1), color="black", capsize=2, lw=1)
        if metric == "accuracy":
            for place, pair in enumerate(pairs):
                style = {"color": "black", "ls": ":", "label": "most frequent class"}
                axis.plot([place - 0.42, place + 0.42], [results.majority([pair])] * 2, **style)
        axis.set_xticks(range(len(pairs)), [results.grid.label(target) for _, target in pairs])
        axis.set(ylim=(0, 1), title=f"{NAMES[metric]} on the set that was left out"), axis.grid(False, axis="x")
    handles = dict(zip(*axes[0].get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles))
    text = "trained on all other sets; bar, mean of the runs; whisker, ± 1 standard deviation between them"
    figure.suptitle(f"Leave one out, label rate {results.rate:g}: {text};\n{pretraining_epochs(results)}", fontsize=10)
    save(results, figure, "left_out", made)


def of_pairs(results, projection, made):
    """The figures of single pairs and sources, of the first variant, and those of all together."""
    first = results.variants[0]
    pretrained = [v for v in results.variants if not results.grid.labels_only(v)][:1]
    for source, target in results.pairs():
        confusion(results, first, source, target, made)
        reliability(results, first, source, target, made)
        for variant in pretrained:
            if figure := representations.draw(results, variant, source, target, projection):
                save(results, figure, "representations", made, source, target)
    for variant in pretrained:
        for source in results.sources:
            loss_curves(results, variant, source, made)
    label_rates(results, made)
    ablation(results, made)


def write(grid, projection="tsne"):
    """Draw all figures for which there are files; returns their paths. No row is an error."""
    results, made = results_of(grid), []
    with plt.rc_context(plots.STYLE):
        left_out(results, made) if grid.leave_one_out else of_pairs(results, projection, made)
    print(f"{len(made)} figures in results/: {', '.join(path.split('/')[-1] for path in made)}")
    return made
