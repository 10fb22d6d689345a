"""A picture of what the encoder makes of two data sets: source and target windows in two dimensions."""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

import fast
import utils
from bookkeeping import artefacts, configs
from bookkeeping.plots import COLOURS
from experiments.jobs import is_there
from models import DEAD_MASKED, MaskedModel, encode

EACH = 500  # windows of a data set


def window_means(engine, model, dataset, version, index, rng):
    """Up to EACH windows of a data set, drawn by `rng`: (means over time of their representations (n, D), ids)."""
    data, labels, entry = utils.load_windows(dataset, version)
    names = configs.label_names(entry, index)[1]
    ids = utils.window_labels(labels, index, names, utils.data_path(dataset, version, "label"))
    rows = np.flatnonzero(ids >= 0)
    rows = np.sort(rng.choice(rows, min(EACH, len(rows)), replace=False))
    means = [h.mean(1).cpu().numpy() for h in encode(engine, model, np.asarray(data[rows], np.float32))]
    return np.concatenate(means), ids[rows]


def project(features, method):
    """(n, D) to (n, 2), by scikit-learn's t-SNE or PCA of standardised features; the same numbers every time."""
    features = (features - features.mean(0)) / (features.std(0) + 1e-8)
    if method == "pca":
        return PCA(2, random_state=0).fit_transform(features)
    return TSNE(2, init="pca", perplexity=min(30, (len(features) - 1) / 3), random_state=0).fit_transform(features)


def draw(results, variant, source, target, method):
    """Source and target windows as the first run's encoder sees them, coloured by activity and by domain."""
    grid = results.grid
    jobs = [cell.job for cell in results.cells(variant, results.rate, source) if is_there(grid, cell.job)]
    if not jobs:
        return None
    model = MaskedModel(grid.pretrain_config(jobs[0])["model"])
    artefacts.load_state(grid.checkpoint(jobs[0]), model, DEAD_MASKED)
    rng, engine = np.random.default_rng(0), fast.engine("cpu")
    parts = [window_means(engine, model, name, grid.version, grid.label_index, rng) for name in (source, target)]
    points = project(np.concatenate([features for features, _ in parts]), method)
    ids = np.concatenate([part for _, part in parts])
    domain = np.repeat([0, 1], [len(part) for _, part in parts])
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    style = {"s": 13, "alpha": 0.6, "linewidths": 0}
    names = grid.classes(source)
    colours = COLOURS if len(names) <= len(COLOURS) else plt.colormaps["turbo"](np.linspace(0, 1, len(names)))
    for number, name in enumerate(names):
        for which, marker in enumerate("o^"):
            chosen = points[(ids == number) & (domain == which)]
            label = name if which == 0 else None
            axes[0].scatter(*chosen.T, color=colours[number], marker=marker, label=label, **style)
    for which, marker in enumerate("o^"):
        label = (f"{grid.label(source)}, source", f"{grid.label(target)}, target")[which]
        axes[1].scatter(*points[domain == which].T, color=COLOURS[4 + which], marker=marker, label=label, **style)
    columns = 2 if len(names) <= len(COLOURS) else 4
    for axis, title in zip(axes, ("by activity (● source, ▲ target)", "by domain"), strict=True):
        axis.set_title(title), axis.set_xticks([]), axis.set_yticks([])
        legend = axis.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=columns if axis is axes[0] else 1)
        for handle in legend.legend_handles:
            handle.set_sizes([40]), handle.set_alpha(1)
    axes[0].set_ylabel("no unit; near means similar", fontsize=9)
    shown = {"tsne": "t-SNE", "pca": "PCA"}[method]
    of = f"the encoder pretrained on {source} ({grid.title(variant)}, seed {jobs[0].seed})"
    figure.suptitle(f"Representations of {of}, mean over time, {shown}")
    return figure
