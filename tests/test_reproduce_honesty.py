"""What a reader must be able to trust: the target's labels decide nothing, and labels are what the scores come from."""

import numpy as np
import pytest
from conftest import CLASSIFIER, ENCODER, make_windows

import reproduce
from experiments import baselines, jobs

FLAGS = ["--sources", "a", "--targets", "b", "--seeds", "1", "--no_figures", "--jobs", "0", "-g", "cpu"]


def run(*flags):
    reproduce.main(reproduce.get_args([*FLAGS, *flags]))


def predictions(files):
    """The .npz files among Project.files(), without what is the target's: {path: logits}."""
    folder = {path for path in files if path.endswith(".npz")}
    return {path: np.load(path)["logits"].tobytes() for path in folder}


def test_target_labels_influence_nothing_but_the_metrics(project, monkeypatch):
    monkeypatch.setattr(baselines, "TREES", 5)
    flags = ["--variants", "full", "cnn", "forest", "end_to_end", "--keep_embeddings"]
    run(*flags)
    first = {path: data for path, data in project.files().items() if not path.startswith("dataset/b/")}
    logits = predictions(first)
    for path in first:
        if path.startswith(("saved", "embed")):
            (project.folder / path).unlink()
    data, labels = make_windows(12, seed=2)
    other = labels[np.random.default_rng(0).permutation(12)]
    assert (other[:, 0, 0] != labels[:, 0, 0]).any()
    project.dataset("b", data=data, labels=other)
    run(*flags)
    second = {path: data for path, data in project.files().items() if not path.startswith("dataset/b/")}
    assert len(logits) == 4 and predictions(second) == logits
    metrics = {"saved/results.csv"} | set(logits)  # these hold the target's labels and what comes from them
    assert first.keys() == second.keys() and len(first) > 12
    assert [path for path in first if first[path] != second[path]] == sorted(metrics)


def balanced_shuffle(labels, rng):
    """Labels (N, T, K) shuffled so that the windows of each true activity get every label equally often."""
    labels = labels.copy()
    for activity in range(4):
        mine = rng.permutation(np.flatnonzero(labels[:, 0, 0] == activity))
        labels[mine, :, 0] = (np.arange(len(mine)) % 4)[:, None]
    return labels


@pytest.mark.parametrize("variant", ["full", "cnn", "forest"])
def test_shuffled_source_labels_bring_the_target_down_to_chance(project, variant):
    """Chance is 1/4. The shuffled runs are averaged: the four groups of windows that a model tells apart may all get
    the right name by accident."""
    project.config("pretrain_model", {"base_v1": ENCODER | {"hidden": 24, "hidden_ff": 24}})
    project.config("classifier", {"transformer_v1": CLASSIFIER | {"input_size": 24}})
    project.config("train", n_epochs=14, lr=0.01)
    data, labels = make_windows(120, seed=1)
    project.dataset("a", data=data, labels=labels)
    project.dataset("b", 60, seed=2)
    made = reproduce.make_grid(reproduce.get_args([*FLAGS, "--variants", variant, "--label_rates", "0.8"]))
    made.all_variants[variant]["augment"] = "none"
    (cell,) = made.cells(made.jobs()[0])

    def accuracy(y):
        project.dataset("a", data=data, labels=y)
        if made.is_baseline(variant):
            return jobs.call(made.baseline(cell, ["b"]))["b"]["accuracy"]
        jobs.call(made.embedding(cell.job)), jobs.call(made.classifier(cell))
        return jobs.call(made.test(cell))["accuracy"]

    if not made.is_baseline(variant):
        jobs.call(made.pretrain(cell.job))  # without labels: once for all
    rng = np.random.default_rng(0)
    learned, shuffled = accuracy(labels), [accuracy(balanced_shuffle(labels, rng)) for _ in range(3)]
    assert learned > 0.7
    assert np.mean(shuffled) == pytest.approx(0.25, abs=0.15)
