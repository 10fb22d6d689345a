"""experiments/baselines.py: the supervised models see the windows that classifier.py labels, and repeat themselves."""

import numpy as np
import pytest
import torch
from conftest import make_windows

import augment
import classifier
from bookkeeping.commands import UserError
from experiments import baselines


@pytest.fixture(autouse=True)
def few_trees(monkeypatch):
    monkeypatch.setattr(baselines, "TREES", 10)


def test_statistics_are_those_described():
    x = np.random.default_rng(0).standard_normal((3, 120, 6)).astype(np.float32)
    found = baselines.statistics(x)
    assert found.shape == (3, 64)
    length = np.sqrt((x[:, :, 3:] ** 2).sum(2))  # the last of the eight columns of each statistic
    wanted = [length.mean(1), length.std(1), *(np.quantile(length, q, axis=1) for q in (0, 0.25, 0.5, 0.75, 1))]
    wanted.append(np.abs(length[:, 1:] - length[:, :-1]).mean(1))
    np.testing.assert_allclose(found[:, 7::8], np.stack(wanted, axis=1), rtol=1e-4)
    np.testing.assert_allclose(found[:, 0], x[:, :, 0].mean(1), atol=1e-6)


@pytest.mark.parametrize("split_by", ["window", "copy"])
def test_the_labelled_windows_are_those_of_the_classifier(project, monkeypatch, split_by):
    """Rows of the same number, of the embedding there and of the augmented windows here."""
    project.config("train", n_epochs=1, split_by=split_by)
    seen = {}

    def spy(name):
        def train_epoch(engine, model, optimizer, x, y, *_):
            seen[name] = (x, y)
            return torch.tensor(1.0)

        return train_epoch

    monkeypatch.setattr(classifier, "train_epoch", spy("classifier"))
    monkeypatch.setattr(baselines, "train_epoch", spy("baseline"))
    project.stages("--seed", 5)
    project.run("experiments.baselines", "-d", "a", "-td", "b", "-lr", 0.5, "--seed", 5)
    embedding = np.load("embed/embed_a_20_120.npy")
    rows = [int((embedding == h.numpy()).all((1, 2)).argmax()) for h in seen["classifier"][0]]
    windows = augment.augment_copies(torch.from_numpy(make_windows(32, seed=1)[0]), "channel_aug", 5)
    assert torch.equal(windows[rows], seen["baseline"][0]) and torch.equal(seen["classifier"][1], seen["baseline"][1])


@pytest.mark.parametrize("name", ["cnn", "forest"])
def test_several_sources_are_labelled_each_as_it_is_alone(project, monkeypatch, name):
    project.config("train", n_epochs=1)
    project.dataset("b", 24, seed=2), project.dataset("c", 12, seed=3)
    seen, fit = [], baselines.fit

    def spy(args, config, engine, sizes, labelled, val):
        seen.append((*labelled, *val))
        return fit(args, config, engine, sizes, labelled, val)

    monkeypatch.setattr(baselines, "fit", spy)
    for source in ("a", "b", "b,a"):
        flags = ["-d", source, "-td", "c", "-b", name, "-lr", 0.5, "-am", "none", "--quiet"]
        found = project.run("experiments.baselines", *flags)
    a, b, both = seen
    assert all(torch.equal(torch.cat(alone), joined) for *alone, joined in zip(a, b, both, strict=True))
    assert set(found) == {"c"} and len(a[0]) == 12 and len(b[0]) == 9


@pytest.mark.parametrize("name", baselines.MODELS)
def test_a_baseline_repeats_itself(project, name):
    flags = ["-d", "a", "--targets", "b", "a", "-b", name, "-lr", 0.5, "--quiet"]
    first, files = project.run("experiments.baselines", *flags), project.files()
    second = project.run("experiments.baselines", *flags)
    assert first == second and set(first) == {"a", "b"}
    again = project.files()
    for path in files:
        if path.endswith(".pt"):
            assert files[path] == again[path]
    assert (f"saved/baseline_{name}_a_20_120/model.pt" in files) == (name != "forest")


def test_the_cnn_learns(project):
    project.dataset("a", 160, seed=1), project.dataset("b", 80, seed=2)
    project.config("train", n_epochs=10)
    result = project.run("experiments.baselines", "-d", "a", "-td", "b", "-b", "cnn", "-lr", 1, "-am", "none")
    assert result["b"]["accuracy"] > 0.9


def test_mistakes(project):
    project.dataset("c", 12, activity_label=["sit", "walk", "run", "fly"])
    with pytest.raises(UserError, match="same classes"):
        project.run("experiments.baselines", "-d", "a", "-td", "c", "-b", "forest")
    project.dataset("d", 4)
    with pytest.raises(UserError, match="too few"):
        project.run("experiments.baselines", "-d", "d", "-td", "b")
