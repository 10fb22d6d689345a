"""Several sources at once (-d a,b): joined windows and labels, a source's own split, equal shares of every batch."""

import numpy as np
import pytest
import torch
from conftest import DATASET, make_windows

import batches
import pretrain
import reproduce
import utils
from augment import make_generator
from bookkeeping import artefacts, configs
from bookkeeping.commands import UserError


@pytest.fixture
def three(project):
    """Sources a (32 windows) and b (12), target c."""
    project.dataset("c", 16, seed=3)
    return project


def test_all_four_scripts_take_several_sources(three):
    for script, *flags in (
        ("pretrain", "-d", "b,a"),
        ("embedding", "-d", "a,b"),
        ("classifier", "-d", "b+a", "-lr", 0.5),
        ("cross_dataset_test", "-d", "a,b", "-td", "c"),
    ):
        found = three.run(script, *flags)
    assert found["windows"] == 16
    (row,) = artefacts.read_table("saved/results.csv")
    assert (row["source"], row["target"]) == ("a+b", "c")
    embed = artefacts.load_npy("embed/embed_a+b_20_120.npy", "")
    assert embed.shape[0] == 6 * 44
    config = artefacts.load_record("saved/pretrain_base_a+b_20_120/model_masked_6_1.pt")["config"]
    assert config["dataset"] == "a+b"
    made_from = artefacts.load_record("saved/classifier_base_transformer_a+b_20_120/model_transformer.pt")["made_from"]
    assert {"dataset/a/data_20_120.npy", "dataset/b/data_20_120.npy"} <= set(made_from)


def test_streamed_sources_give_the_same_bits(three):
    three.run("pretrain", "-d", "a,b")
    three.run("pretrain", "-d", "a,b", "-s", "streamed", "--memory_gb", 0)
    folder = three.folder / "saved/pretrain_base_a+b_20_120"
    assert (folder / "model_masked_6_1.pt").read_bytes() == (folder / "streamed_masked_6_1.pt").read_bytes()


def test_a_target_among_the_sources_is_refused(three):
    with pytest.raises(UserError, match="-td b is one of the sources a, b; choose another"):
        three.run("cross_dataset_test", "-d", "a,b", "-td", "b")
    status, _, error = three.command("pretrain.py", "-d", "a,a")
    assert status == 2 and "names a data set twice" in error


@pytest.mark.parametrize("given", ["b,a", "a,b", "b+a"])
def test_the_order_is_that_of_the_configuration(project, given):
    assert pretrain.get_args(["-d", given]).dataset == "a+b"
    assert pretrain.get_args(["-d", "z,y,b"]).dataset == "b+y+z"  # those it does not have, by name


def test_columns_and_classes_are_matched_by_name(project):
    """b has its columns the other way round, its classes in another order, one that a has not and not all of a's."""
    data, labels = make_windows(12, seed=2)
    classes = ["sitting&standing", "jogging", "walking"]
    b = np.stack([labels[..., 1], np.arange(12)[:, None] % 3 + np.zeros((12, 120))], 2)
    entry = {"activity_label_index": 1, "activity_label_size": 3, "activity_label": classes, "user_label_index": 0}
    project.dataset("b", data=data, labels=b.astype(np.float32), **entry)
    joined, ids, merged = utils.load_windows("a+b", "20_120")
    assert merged["activity_label"] == [*DATASET["activity_label"], "jogging"]
    names = configs.label_names(merged, 0)[1]
    words = [names[i] for i in utils.window_labels(ids, 0, names, "")]
    assert words[:4] == DATASET["activity_label"]
    assert words[32:35] == classes
    people = configs.label_names(merged, 1)[1]
    assert people == ["a ann", "a bob", "a eve", "b ann", "b bob", "b eve"]  # never the same person
    assert len(joined) == 44 and np.array_equal(joined[np.array([33, 0])][0], data[1])
    assert np.array_equal(joined[30:34][2:], data[:2]) and np.array_equal(np.asarray(joined)[32:], data)


def test_sets_that_do_not_go_together_are_refused(project):
    project.dataset("b", 12, seq_len=60)
    with pytest.raises(UserError, match="'seq_len' differs between the sources: 120 \\(a\\), 60 \\(b\\)"):
        configs.dataset_config("a+b", "20_120")


@pytest.mark.parametrize("split_by", ["window", "copy"])
def test_split_and_label_rate_are_a_sources_own(split_by):
    counts, copies = [30, 50], 6
    ids = np.tile(np.arange(80) % 4, copies)
    split = utils.labelled_split(ids, list("wuds"), "x", 0.2, counts, copies, 7, split_by)
    for number, (count, start) in enumerate(((30, 0), (50, 30))):
        alone = utils.split_windows(count, copies, 7, split_by)
        for part, own in zip(split[1:], alone, strict=True):
            windows = part[number] % 80 - start
            assert np.array_equal(windows, own % count) and np.array_equal(part[number] // 80, own // count)
        rate, most = 0.2, len(split[1][number]) // (copies if split_by == "window" else 1)
        assert len(split[0][number]) == int(rate * most) * (copies if split_by == "window" else 1)


@pytest.mark.parametrize("sizes, B", [([40, 12], 8), ([7, 50, 20], 10), ([33], 8)])
def test_every_batch_has_equal_shares_of_the_sources(sizes, B):
    steps = sum(sizes) // B
    order = batches.shuffled(sizes, steps, B, make_generator("cpu", 1))
    edges = torch.tensor([0, *sizes]).cumsum(0)
    source = torch.bucketize(order, edges[1:], right=True)
    assert order.shape == (steps, B)
    for number, size in enumerate(sizes):
        share = (source == number).sum(1)
        assert (share == B // len(sizes) + (number < B % len(sizes))).all()
        rows = order[source == number] - edges[number]
        counts = torch.bincount(rows, minlength=size)
        assert counts.max() - counts.min() <= 1  # visited in turn, none more often than another


def test_leave_one_out_makes_each_set_the_target_of_the_others(three, capsys):
    flags = ["--leave_one_out", "--variants", "full", "forest", "--seeds", "1", "--jobs", "0", "-g", "cpu"]
    text = reproduce.main(reproduce.get_args(flags))
    rows = artefacts.read_table("saved/results.csv")
    assert {(row["source"], row["target"]) for row in rows} == {("b+c", "a"), ("a+c", "b"), ("a+b", "c")}
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    accuracy = {row["target"]: float(row["accuracy"]) for row in rows if not row["baseline"]}
    for target, value in accuracy.items():
        assert f"{value:.3f} / " in lines[target]
    assert f"{np.mean(list(accuracy.values())):.3f} / " in lines["mean of all"]
    assert (three.folder / "results/left_out_leave_one_out_full+forest_seeds=1.png").stat().st_size > 5000
    with pytest.raises(UserError, match="--leave_one_out makes its sources itself"):
        reproduce.main(reproduce.get_args(["--leave_one_out", "--sources", "a"]))
