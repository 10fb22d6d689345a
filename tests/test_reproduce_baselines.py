"""experiments/baselines.py: the supervised models see the windows that classifier.py labels, and repeat themselves."""

import numpy as np
import pytest
import torch
from conftest import ACTIVITIES, CLASSIFIER, ENCODER, make_windows

import augment
import classifier
import metrics
from bookkeeping import artefacts, ledger
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


def test_epochs_and_seeds_are_drawn_anew(project, monkeypatch):
    """Batches and dropout are functions of (seed, epoch), the forest's trees of the seed; total_steps ends the last."""
    project.config("train", n_epochs=3, batch_size=8, total_steps=5)  # 12 labelled windows: two steps an epoch
    drawn, weights, train_epoch = [], [], baselines.train_epoch

    def spy(engine, model, optimizer, x, y, sizes, batch_size, most, generator):
        drawn.append((most, generator.initial_seed()))
        weights.append(model.fc.weight.detach().clone())
        return train_epoch(engine, model, optimizer, x, y, sizes, batch_size, most, generator)

    monkeypatch.setattr(baselines, "train_epoch", spy)
    flags = ["-d", "a", "-td", "b", "-lr", 0.5, "-am", "none", "--quiet"]
    for seed in (5, 6):
        project.run("experiments.baselines", *flags, "-b", "cnn", "--seed", seed)
    assert [most for most, _ in drawn] == [5, 3, 1] * 2 and len({seed for _, seed in drawn}) == 6
    assert not torch.equal(weights[0], weights[3])  # as it was drawn
    x, y = torch.from_numpy(make_windows(40)[0]), torch.arange(40) % 4
    forests = [baselines.fit_forest(x, y, 4, seed)(x) for seed in (5, 6, 5)]
    assert np.array_equal(forests[0], forests[2]) and not np.array_equal(forests[0], forests[1])


@pytest.mark.parametrize("model", [baselines.CNN(6, 4), baselines.EndToEnd(ENCODER, CLASSIFIER, 4)])
def test_networks_see_normalised_windows(model):
    x = torch.from_numpy(make_windows(6)[0])
    torch.testing.assert_close(model.eval()(3 * x + 5), model(x), rtol=1e-3, atol=1e-4)
    assert (model(x.flip(1) * x) - model(x)).abs().max() > 1e-3


def test_a_forest_that_saw_not_every_class_gives_it_0():
    x, y = torch.from_numpy(make_windows(40)[0]), torch.arange(40) % 4
    seen = (y == 0) | (y == 2)
    found = baselines.fit_forest(x[seen], y[seen], 4, 0)(x)
    assert not found[:, [1, 3]].any() and found[seen].argmax(1).tolist() == y[seen].tolist()


def test_the_saved_cnn_is_the_best_epochs_and_its_temperature_the_validation_parts(project, monkeypatch):
    project.config("train", n_epochs=8, lr=0.03)
    data, labels = make_windows(60)
    labels = labels[np.random.default_rng(0).permutation(60)]  # nothing to learn: validation gets worse
    project.dataset("a", data=data, labels=labels)
    parts, fit = [], baselines.fit

    def spy(args, config, engine, sizes, labelled, val):
        parts.append(val)
        return fit(args, config, engine, sizes, labelled, val)

    monkeypatch.setattr(baselines, "fit", spy)
    project.run("experiments.baselines", "-d", "a", "-td", "b", "-b", "cnn", "-lr", 1, "--quiet")
    folder, ((x, y),) = project.folder / "saved/baseline_cnn_a_20_120", parts
    losses = [float(row["val_loss"]) for row in artefacts.read_table(folder / "model_losses.csv")]
    model = baselines.CNN(6, 4).eval()
    artefacts.load_state(folder / "model.pt", model)
    with torch.no_grad():
        logits = model(x)
    record = artefacts.load_record(folder / "model.pt")
    assert record["epoch"] == 1 + np.argmin(losses) and losses.index(min(losses)) != len(losses) - 1
    assert torch.nn.functional.cross_entropy(logits, y).item() == pytest.approx(min(losses), rel=1e-4)
    assert record["temperature"] == pytest.approx(metrics.fit_temperature(logits, y), rel=1e-4)


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


def test_windows_whose_label_changes_are_left_out(project):
    data, labels = make_windows(12, seed=2)
    labels[3, 60:, 0] = (labels[3, 60:, 0] + 1) % 4
    project.dataset("b", data=data, labels=labels)
    project.run("experiments.baselines", "-d", "a", "-td", "b", "-b", "forest", "-lr", 0.5)
    (row,) = artefacts.read_table("saved/results.csv")
    window = ledger.read_predictions("saved/baseline_forest_a_20_120/model_b.npz", row["config_hash"])[0]
    assert row["windows"] == "11" and window.tolist() == [i for i in range(12) if i != 3]


def test_a_targets_classes_are_matched_by_name(project):
    flags = ["-d", "a", "-td", "b", "-b", "forest", "-lr", 0.5]
    first = project.run("experiments.baselines", *flags)
    data, labels = make_windows(12, seed=2)
    labels[:, :, 0] = 3 - labels[:, :, 0]
    project.dataset("b", data=data, labels=labels, activity_label=ACTIVITIES[::-1])
    second = project.run("experiments.baselines", *flags)
    assert first == second and np.std(np.sum(first["b"]["confusion"], 0)) > 0  # in another order it would be another


def test_the_cnn_learns(project):
    project.dataset("a", 160, seed=1), project.dataset("b", 80, seed=2)
    project.config("train", n_epochs=10)
    result = project.run("experiments.baselines", "-d", "a", "-td", "b", "-b", "cnn", "-lr", 1, "-am", "none")
    assert result["b"]["accuracy"] > 0.9


def test_mistakes(project):
    project.dataset("c", 12, activity_label=["sit", "walk", "run", "fly"])
    with pytest.raises(UserError, match="same classes"):
        project.run("experiments.baselines", "-d", "a", "-td", "c", "-b", "forest")
    with pytest.raises(UserError, match="--targets b is one of the sources a, b; choose another"):
        project.run("experiments.baselines", "-d", "b,a", "--targets", "b", "-b", "forest")
    assert not (project.folder / "saved").exists()  # before anything is trained
    with pytest.raises(SystemExit):
        baselines.get_args(["-d", "a", "--targets", "../b"])
    project.dataset("d", 4)
    with pytest.raises(UserError, match="too few"):
        project.run("experiments.baselines", "-d", "d", "-td", "b")
