"""The four scripts end to end on a small project: file names, records, splits, schedules, released files."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ACTIVITIES, CLASSIFIER, ENCODER, Project, make_windows
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

import batches
import classifier
import cross_dataset_test
import embedding
import fast
import pretrain
import utils
from augment import Copies, PerRow, augment_copies, draw_masks, instance_norm, make_generator, two_views
from batches import InMemory
from bookkeeping import artefacts, commands
from bookkeeping.commands import UserError
from fast.exact import Exact
from models import Classifier, Contrastive, MaskedModel, losses
from plain import Alone, Plain

PLAIN = Plain(Alone(torch.device("cpu")))
PRETRAINED = "saved/pretrain_base_a_20_120"
CLASSIFIED = "saved/classifier_base_transformer_a_20_120"
RESULTS_START = (
    "source,target,dataset_version,augment_method,label_rate,seed,windows,accuracy,"
    "precision_macro,recall_macro,f1_macro,f1_micro,"
)
RELEASED = {"seed": 3431, "lr": 1e-3, "n_epochs": 2, "warmup": 0.1, "save_steps": 1000, "total_steps": 200000000}
RELEASED_PRETRAIN = RELEASED | {"batch_size": 512, "n_epochs_cl": 1}
RELEASED_TRAIN = RELEASED | {
    "batch_size": 128,
    "batch_size_finetune": 64,
    "n_epochs_cl": 10,
    "lambda1": 0.5,
    "lambda2": 1,
}
RELEASED_MASK = {"mask_ratio": 0.15, "mask_alpha": 6, "max_gram": 10, "mask_prob": 0.8, "replace_prob": 0.0}


def read_json(path):
    with open(path) as handle:
        return json.load(handle)


def read_csv(path):
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def state_of(path):
    return torch.load(path, weights_only=True)


# --------------------------------------------------------------------------------- files and records


def test_the_files_have_the_specified_names(trained):
    made = trained.files().keys()
    names = [f"{PRETRAINED}/model_{end}" for end in ("masked_6_1.pt", "TC_6_1.pt", "losses_6_1.csv")]
    names += ["embed/embed_a_20_120.npy", "embed/label_a_20_120.npy"]
    for name in (*names, f"{CLASSIFIED}/model_transformer.pt", "saved/results.csv"):
        assert name in made
        if name.endswith((".pt", ".npy")):
            assert name.rsplit(".", 1)[0] + ".json" in made, "every artefact has a JSON of its stem"
    assert not any("state" in name for name in made), "a finished run leaves no training state"


def test_a_stem_stands_in_every_name(project):
    project.stages("-s", "mine")
    made = project.files().keys()
    names = {f"{PRETRAINED}/mine_masked_6_1.pt", f"{PRETRAINED}/mine_TC_6_1.pt", f"{CLASSIFIED}/mine_transformer.pt"}
    assert names | {"embed/embedmine_a_20_120.npy", "embed/labelmine_a_20_120.npy"} <= made
    assert not any("model_" in name and not name.startswith("config") for name in made)


def test_f_chooses_the_pretrained_model_and_s_the_classifiers_name(trained):
    project = trained
    project.run("pretrain", "-d", "a", "-s", "other", "--seed", 9)
    project.run("embedding", "-d", "a", "-f", "other", "--seed", 9)
    project.run("classifier", "-d", "a", "-f", "other", "-s", "mine", "-lr", 0.5)
    project.run("cross_dataset_test", "-d", "a", "-td", "b", "-f", "other", "-s", "mine")
    assert (project.folder / "embed/embedother_a_20_120.npy").exists()
    assert (project.folder / CLASSIFIED / "mine_transformer.pt").exists()
    row = read_csv("saved/results.csv")[-1]
    assert (row["pretrain_seed"], row["seed"], row["save_model"]) == ("9", "5", "mine")


def test_another_model_version_has_its_own_folders(project):
    project.config("pretrain_model", base_v2=ENCODER | {"hidden": 4, "hidden_ff": 6})
    project.config("classifier", transformer_v2=CLASSIFIER | {"input_size": 4})
    project.stages("-mv", "v2")
    made = project.files().keys()
    assert "saved/pretrain_base_v2_a_20_120/model_masked_6_1.pt" in made
    assert "saved/classifier_base_v2_transformer_a_20_120/model_transformer.pt" in made
    assert not any(name.startswith((PRETRAINED, CLASSIFIED, "embed/embed_a")) for name in made)
    assert read_csv("saved/results.csv")[0]["model_version"] == "v2"


def test_loss_weights_stand_in_the_names_of_pretrained_models(project):
    project.config("pretrain", lambda1=2, lambda2=0.5)
    project.stages()
    assert {"model_masked_2_0.5.pt", "model_TC_2_0.5.pt"} <= {p.name for p in project.folder.glob(f"{PRETRAINED}/*")}
    row = read_csv("saved/results.csv")[0]
    assert (row["lambda1"], row["lambda2"]) == ("2", "0.5")


def test_checkpoints_are_plain_state_dicts_without_dead_weights(trained):
    for path, module in (
        (f"{PRETRAINED}/model_masked_6_1.pt", MaskedModel(ENCODER)),
        (f"{PRETRAINED}/model_TC_6_1.pt", Contrastive(ENCODER["hidden"])),
        (f"{CLASSIFIED}/model_transformer.pt", Classifier(CLASSIFIER, 4)),
    ):
        state = state_of(path)
        assert type(state) is dict and list(state) == list(module.state_dict())
        module.load_state_dict(state)


def test_records_hold_configuration_fingerprints_versions_and_device(trained):
    masked = read_json(f"{PRETRAINED}/model_masked_6_1.json")
    assert masked["config"]["train"] == read_json("config/pretrain.json") | {"total_steps": 0}
    assert masked["config"]["mask"] == read_json("config/mask.json")
    assert masked["config"]["model"] == ENCODER
    assert masked["config"]["augment_method"] == "channel_aug"
    assert masked["device"] == "cpu" and {"python", "numpy", "torch"} <= masked["versions"].keys()
    assert masked["epoch"] in (3, 4) and masked["epochs"] == 4
    classified = read_json(f"{CLASSIFIED}/model_transformer.json")
    assert classified["config"]["label_rate"] == 0.5 and classified["config"]["classes"] == ACTIVITIES
    assert set(classified["source_test"]) >= {"accuracy", "f1_macro", "confusion"}
    for path in trained.folder.glob("*/*"):
        if path.suffix == ".npy" and path.parent.name == "embed":
            assert read_json(path.with_suffix(".json"))["fingerprint"] == artefacts.fingerprint(path)
    for record in (masked, classified):
        assert record["made_from"] == {path: artefacts.fingerprint(path) for path in record["made_from"]}
    assert "dataset/a/data_20_120.npy" in masked["made_from"]
    assert f"{PRETRAINED}/model_masked_6_1.pt" in classified["made_from"]
    assert "embed/embed_a_20_120.npy" in classified["made_from"]


def test_results_have_the_specified_header_and_a_row_for_each_test(trained):
    trained.run("cross_dataset_test", "-d", "a", "-td", "b")
    with open("saved/results.csv") as handle:
        assert handle.read().startswith(RESULTS_START)
    rows = read_csv("saved/results.csv")
    assert len(rows) == 2 and rows[0] == rows[1]
    row = rows[0]
    assert (row["source"], row["target"], row["dataset_version"]) == ("a", "b", "20_120")
    assert (row["augment_method"], row["label_rate"], row["seed"]) == ("channel_aug", "0.5", "5")
    assert (row["windows"], row["pretrain_seed"], row["epochs"], row["split_by"]) == ("12", "5", "4", "window")
    for key in ("accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_micro"):
        assert float(row[key]) == round(trained.scores[key], 6)


def test_scores_are_scikit_learns_over_all_classes(trained):
    """Also for the class that the target lacks here: it counts with 0."""
    data, labels = make_windows(20, seed=8)
    data, labels = (part[labels[:, 0, 0] != 3] for part in (data, labels))
    trained.dataset("few", data=data, labels=labels)
    result = trained.run("cross_dataset_test", "-d", "a", "-td", "few")
    truth, predicted = labels[:, 0, 0].astype(int), result["predictions"]
    macro = precision_recall_fscore_support(truth, predicted, labels=range(4), average="macro", zero_division=0)
    assert result["accuracy"] == accuracy_score(truth, predicted) == result["f1_micro"]
    assert [result["precision_macro"], result["recall_macro"], result["f1_macro"]] == pytest.approx(macro[:3])
    confusion = np.array(result["confusion"])
    assert confusion.shape == (4, 4) and confusion[3].sum() == 0 and confusion.sum() == len(truth)
    assert confusion[truth[0], predicted[0]] > 0


def test_the_report_names_the_activities(trained, capsys):
    trained.run("cross_dataset_test", "-d", "a", "-td", "b")
    out = capsys.readouterr().out
    assert all(name in out for name in ACTIVITIES) and "a -> b" in out and "majority" in out


# --------------------------------------------------------------------------------- one seed, one result


def test_two_runs_with_one_seed_are_bit_identical(trained, tmp_path_factory, monkeypatch):
    again = Project(tmp_path_factory.mktemp("again"))
    monkeypatch.chdir(again.folder)
    again.dataset("a", 32, seed=1), again.dataset("b", 12, seed=2)
    torch.manual_seed(123), np.random.seed(123), torch.rand(7)  # the scripts depend on no global state
    again.stages()
    first, second = trained.files(), again.files()
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def test_a_run_as_a_command_of_its_own_is_bit_identical_too(trained):
    before = trained.files()
    for flags in (["pretrain.py"], ["embedding.py"], ["classifier.py", "-lr", 0.5]):
        status, _, err = trained.command(flags[0], "-d", "a", "-g", "cpu", *flags[1:])
        assert status == 0, err
    after = trained.files()
    assert [name for name in before if before[name] != after[name]] == []


def test_another_seed_gives_another_model(trained):
    before = trained.files()
    trained.run("pretrain", "-d", "a", "--seed", 6)
    assert trained.files()[f"{PRETRAINED}/model_masked_6_1.pt"] != before[f"{PRETRAINED}/model_masked_6_1.pt"]
    assert read_json(f"{PRETRAINED}/model_masked_6_1.json")["config"]["train"]["seed"] == 6


def test_the_targets_labels_leave_every_artefact_and_prediction_as_it_is(trained):
    data, labels = make_windows(12, seed=2)
    before = trained.files()
    trained.dataset("b", data=data, labels=labels[::-1])
    for script, flags in (("pretrain", []), ("embedding", []), ("classifier", ["-lr", 0.5])):
        trained.run(script, "-d", "a", *flags)
    result = trained.run("cross_dataset_test", "-d", "a", "-td", "b")
    assert np.array_equal(result["predictions"], trained.scores["predictions"])
    after = trained.files()
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"dataset/b/label_20_120.npy", "saved/results.csv", f"{CLASSIFIED}/model_transformer_b.npz"}


def test_the_targets_windows_leave_training_as_it_is(trained):
    before = trained.files()
    trained.dataset("b", 12, seed=77)
    for script, flags in (("pretrain", []), ("embedding", []), ("classifier", ["-lr", 0.5])):
        trained.run(script, "-d", "a", *flags)
    after = trained.files()
    assert [name for name in before if before[name] != after[name]] == ["dataset/b/data_20_120.npy"]


def test_predictions_of_a_window_do_not_depend_on_the_other_windows(trained):
    """No statistics of the target set enter: each window is classified on its own."""
    data, labels = make_windows(12, seed=2)
    trained.dataset("part", data=data[5:6], labels=labels[5:6])
    result = trained.run("cross_dataset_test", "-d", "a", "-td", "part")
    assert result["predictions"][0] == trained.scores["predictions"][5]


def test_the_method_learns(project):
    """Four waves that a network can tell apart, also in the windows of a data set that it has not seen."""
    project.dataset("a", 48, seed=1), project.dataset("b", 40, seed=2)
    project.config("pretrain", n_epochs=6, n_epochs_cl=3), project.config("train", n_epochs=20, lr=0.01)
    history = project.run("pretrain", "-d", "a")["history"]
    assert history[2]["train_masked"] < history[0]["train_masked"]
    assert history[5]["train_contrastive"] < history[3]["train_contrastive"]
    project.run("embedding", "-d", "a"), project.run("classifier", "-d", "a", "-lr", 0.5)
    assert project.run("cross_dataset_test", "-d", "a", "-td", "b")["accuracy"] > 0.6  # chance is 0.25


# --------------------------------------------------------------------------------- splits


def released_split(N, copies, seed, rate):
    """The released code's split, plainly: NumPy seeded, the copies' rows shuffled, cut; seeded again for the labels."""
    np.random.seed(seed)
    rows = np.arange(N * copies)
    np.random.shuffle(rows)
    end, val_end = int(len(rows) * 0.8), int(len(rows) * 0.8) + int(len(rows) * 0.1)
    train, val, test = rows[:end], rows[end:val_end], rows[val_end:]
    np.random.seed(seed)
    chosen = np.arange(len(train))
    np.random.shuffle(chosen)
    return train, val, test, train[chosen[: int(len(train) * rate)]]


@pytest.mark.parametrize("N, copies, seed", [(1687, 6, 3431), (40, 6, 0), (33, 1, 7)])
def test_split_by_copy_is_the_released_one(N, copies, seed):
    *parts, labelled = released_split(N, copies, seed, 0.1)
    ours = utils.split_windows(N, copies, seed, "copy")
    for mine, released in zip(ours, parts, strict=True):
        assert np.array_equal(mine, released)
    assert np.array_equal(utils.pick_labelled(ours[0], 0.1, N, copies, seed, "copy"), labelled)


def test_split_by_copy_reveals_the_labels_of_39_percent_of_the_windows():
    labelled = released_split(1687, 6, 3431, 0.1)[3]
    assert abs(len(set(labelled % 1687)) / 1687 - 0.39) < 0.01


@pytest.mark.parametrize("N, copies, seed", [(1687, 6, 3431), (24, 6, 0), (40, 1, 3)])
def test_split_by_window_keeps_all_copies_of_a_window_together(N, copies, seed):
    parts = utils.split_windows(N, copies, seed, "window")
    assert sorted(np.concatenate(parts)) == list(range(N * copies))
    for part in parts:
        assert np.array_equal(np.bincount(part % N, minlength=N)[np.unique(part % N)], [copies] * (len(part) // copies))
    windows = [set(part % N) for part in parts]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(windows, 2))
    assert [len(w) for w in windows] == [int(N * 0.8), int(N * 0.1), N - int(N * 0.8) - int(N * 0.1)]
    labelled = utils.pick_labelled(parts[0], 0.1, N, copies, seed, "window")
    assert set(labelled) <= set(parts[0])
    assert len(labelled) == copies * max(1, int(len(windows[0]) * 0.1)) == copies * len(set(labelled % N))


def test_splits_follow_the_seed_and_leave_numpys_global_state_alone():
    np.random.seed(0)
    first = [tuple(part) for part in utils.split_windows(50, 6, 1, "window")]
    assert np.random.rand() == np.random.RandomState(0).rand()
    assert first == [tuple(part) for part in utils.split_windows(50, 6, 1, "window")]
    assert first != [tuple(part) for part in utils.split_windows(50, 6, 2, "window")]


@pytest.mark.parametrize("split_by", ["window", "copy"])
def test_both_splits_run_through_all_stages(project, split_by):
    project.config("pretrain", split_by=split_by), project.config("train", split_by=split_by)
    project.stages()
    assert read_csv("saved/results.csv")[0]["split_by"] == split_by


def test_the_smallest_share_labels_one_window():
    parts = utils.split_windows(30, 6, 0, "window")
    assert len(set(utils.pick_labelled(parts[0], 0.001, 30, 6, 0, "window") % 30)) == 1
    assert len(utils.pick_labelled(parts[0], 1.0, 30, 6, 0, "window")) == len(parts[0])


# --------------------------------------------------------------------------------- schedule of stage 1


def test_first_half_masked_alone_second_half_both_and_best_from_the_second(project):
    project.config("pretrain", n_epochs=6, n_epochs_cl=3)
    result = project.run("pretrain", "-d", "a")
    history = result["history"]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert [row["train_contrastive"] > 0 for row in history] == [False] * 3 + [True] * 3
    for row in history:
        both = 6 * row["val_masked"] + row["val_contrastive"]
        assert row["val_loss"] == pytest.approx(row["val_masked"] if row["epoch"] <= 3 else both)
    second = {row["epoch"]: row["val_loss"] for row in history[3:]}
    assert result["best_epoch"] == min(second, key=second.get) and result["best_loss"] == min(second.values())
    table = read_csv(f"{PRETRAINED}/model_losses_6_1.csv")
    assert [{key: float(value) for key, value in row.items()} for row in table] == history


@pytest.mark.parametrize("without", ["lambda1", "lambda2"])
def test_each_loss_weight_weighs_its_own_loss(project, without):
    """With a weight of 0, what only that loss trains stays as it was initialised; the rest is trained."""
    project.config("pretrain", n_epochs=1, n_epochs_cl=1, **{without: 0})
    masked, contrastive = (state_of(path) for path in project.run("pretrain", "-d", "a")["paths"])
    torch.manual_seed(5)
    model, head = MaskedModel(ENCODER).state_dict(), Contrastive(ENCODER["hidden"]).state_dict()
    decoder_stays = torch.equal(masked["decoder.weight"], model["decoder.weight"])
    projection_stays = torch.equal(contrastive["projection_head.3.weight"], head["projection_head.3.weight"])
    assert (decoder_stays, projection_stays) == (without == "lambda1", without == "lambda2")
    assert not torch.equal(masked["transformer.proj.weight"], model["transformer.proj.weight"])


def test_the_saved_weights_are_those_of_the_best_epoch(project):
    result = project.run("pretrain", "-d", "a")
    cfg, mask = read_json("config/pretrain.json"), read_json("config/mask.json")
    model, head = MaskedModel(ENCODER).eval(), Contrastive(ENCODER["hidden"]).eval()
    for path, module in zip(result["paths"], (model, head), strict=True):
        module.load_state_dict(state_of(path))
    data = torch.from_numpy(make_windows(32, seed=1)[0])
    rows = torch.from_numpy(utils.split_windows(32, 6, cfg["seed"], "window")[1])
    views = two_views(augment_copies(data, "channel_aug", cfg["seed"])[rows], PerRow(rows, cfg["seed"], "views"))
    masks = draw_masks(2 * len(rows), 120, 6, mask, make_generator("cpu", cfg["seed"], "validation masks"))
    with torch.no_grad():
        masked, contrastive = losses(PLAIN, model, head, views, masks, None, True)
    assert float(6 * masked + contrastive) == pytest.approx(result["best_loss"], rel=1e-5)


def test_every_epoch_trains_in_train_mode_with_whole_batches(project):
    """BatchNorm counts its batches: two a step (one a view), in training alone; the last partial batch is dropped."""
    project.config("pretrain", n_epochs=5, n_epochs_cl=3)
    result = project.run("pretrain", "-d", "a")
    steps = 25 * 6 // 32  # 25 of 32 windows train
    batches = int(state_of(result["paths"][1])["projection_head.1.num_batches_tracked"])
    assert batches == 2 * steps * (result["best_epoch"] - 2)


def test_validation_repeats_its_masks_while_training_draws_new_ones(project):
    project.config("pretrain", lr=1e-12, n_epochs=4, n_epochs_cl=0)
    history = project.run("pretrain", "-d", "a")["history"]
    assert len({round(row["val_masked"], 5) for row in history}) == 1
    assert len({round(row["train_masked"], 5) for row in history}) == 4


def test_validation_covers_every_window_whatever_the_batch_size(project, monkeypatch):
    torch.manual_seed(0)
    networks = {"model": MaskedModel(ENCODER).eval(), "head": Contrastive(8).eval(), "optimizer": None}
    views = InMemory(instance_norm(torch.randn(2, 7, 120, 6)))
    masks = draw_masks(14, 120, 6, read_json("config/mask.json"), make_generator("cpu", 1))
    sizes = []

    def counted(engine, model, head, views, *more):
        sizes.append(views.shape[1])
        return losses(engine, model, head, views, *more)

    monkeypatch.setattr(pretrain, "losses", counted)
    whole = pretrain.validate(PLAIN, networks, views, masks, 512, True)
    assert sizes == [7]
    parts = pretrain.validate(PLAIN, networks, views, masks, 3, True)
    assert sizes[1:] == [3, 2, 2]  # equal batches of at most three
    assert float(parts[0]) == pytest.approx(float(whole[0]), rel=1e-5)


@pytest.mark.parametrize("views, drawn", [("once", 2), ("epoch", 2 + 3)])
def test_views_are_drawn_once_or_anew_each_epoch(project, monkeypatch, views, drawn):
    calls = []
    monkeypatch.setattr(batches, "two_views", lambda *args: calls.append(1) or two_views(*args))
    project.config("pretrain", views=views)
    project.run("pretrain", "-d", "a")
    assert len(calls) == drawn


@pytest.mark.parametrize("n_epochs_cl, joint", [(0, 0), (3, 3), (1, 1)])
def test_any_part_of_the_epochs_may_have_both_losses(project, n_epochs_cl, joint):
    project.config("pretrain", n_epochs=3, n_epochs_cl=n_epochs_cl)
    history = project.run("pretrain", "-d", "a")["history"]
    assert sum(row["train_contrastive"] > 0 for row in history) == joint


def test_without_n_epochs_cl_the_second_half_has_both_losses(project):
    config = read_json("config/pretrain.json")
    project.config("pretrain", {key: value for key, value in config.items() if key != "n_epochs_cl"} | {"n_epochs": 3})
    history = project.run("pretrain", "-d", "a")["history"]
    assert [row["train_contrastive"] > 0 for row in history] == [False, True, True]


def test_total_steps_stops_both_trainings_after_so_many_steps(project):
    steps = 25 * 6 // 32
    project.config("pretrain", total_steps=steps + 1, n_epochs=5, n_epochs_cl=4)
    result = project.run("pretrain", "-d", "a")
    assert len(result["history"]) == 2
    batches = int(state_of(result["paths"][1])["projection_head.1.num_batches_tracked"])
    assert batches in (2,) and result["best_epoch"] == 2  # one step of the second epoch, the first with both losses
    project.run("embedding", "-d", "a")
    project.config("train", total_steps=7)  # 12 windows x 6 copies in batches of 16: 5 steps an epoch
    taken = count_steps(project)
    assert taken == 7 and len(read_csv(f"{CLASSIFIED}/model_transformer_losses.csv")) == 2


def count_steps(project):
    """How many optimiser steps classifier.py takes."""
    taken = []
    original = utils.Adam.step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils.Adam, "step", lambda self, *args: taken.append(1) or original(self, *args))
        project.run("classifier", "-d", "a", "-lr", 0.5)
    return len(taken)


def test_training_imports_no_compiler(project):
    """It would take as long as the import of PyTorch itself; and the optimiser without it takes PyTorch's own steps."""
    told = "import atexit; atexit.register(lambda: print('torch._dynamo' in sys.modules))"
    status, out, err = project.command("pretrain.py", "-d", "a", "-g", "cpu", "--quiet", prelude=told)
    assert status == 0 and out.splitlines()[-1] == "False", err
    weights, states = [], []
    for kind in (torch.optim.Adam, utils.Adam):
        layer = torch.nn.Linear(3, 2)
        torch.nn.init.constant_(layer.weight, 0.5), torch.nn.init.zeros_(layer.bias)
        optimizer = kind(layer.parameters(), lr=0.1, fused=True)
        for step in range(4):
            if step == 2:  # as a resumed run does
                before, optimizer = optimizer.state_dict(), kind(layer.parameters(), lr=0.1, fused=True)
                optimizer.load_state_dict(before)
            optimizer.zero_grad()
            layer(torch.eye(3) + step).square().sum().backward()
            optimizer.step()
        weights.append(layer.weight), states.append(optimizer.state_dict())
    assert torch.equal(*weights) and states[0].keys() == states[1].keys()
    assert states[0]["param_groups"] == states[1]["param_groups"]


def test_every_epoch_of_the_classifier_draws_on_its_own(trained, monkeypatch):
    seeds, train_epoch = [], classifier.train_epoch
    monkeypatch.setattr(classifier, "train_epoch", lambda *a: seeds.append(a[-1].initial_seed()) or train_epoch(*a))
    trained.run("classifier", "-d", "a", "-lr", 0.5)
    assert len(seeds) == len(set(seeds)) == 4


def test_the_classifiers_precision(trained):
    """It is recorded; tf32 is a GPU's, on a CPU the same bits as fp32."""
    weights = {}
    for precision in ("fp32", "tf32", "bf16") if fast.has_amx() else ("fp32", "tf32"):
        name = ["-s", precision, "-f", "model"]
        trained.run("classifier", "-d", "a", "-lr", 0.5, *name, "--precision", precision)
        assert read_json(f"{CLASSIFIED}/{precision}_transformer.json")["precision"] == precision
        weights[precision] = Path(f"{CLASSIFIED}/{precision}_transformer.pt").read_bytes()
    assert weights["fp32"] == weights["tf32"] == Path(f"{CLASSIFIED}/model_transformer.pt").read_bytes()
    assert weights.get("bf16") != weights["fp32"]


def test_a_precision_that_is_not_to_be_had_is_refused(trained, monkeypatch):
    monkeypatch.setattr(fast, "has_amx", lambda: False)
    for script in ("pretrain", "classifier"):
        with pytest.raises(UserError, match="--precision bf16 on a CPU needs one with AMX"):
            trained.run(script, "-d", "a", "--precision", "bf16")
    monkeypatch.setattr(fast, "engine", lambda *_, **__: Exact(Alone(torch.device("cuda")), "bf16"))
    with pytest.raises(UserError, match="the classifier is for a CPU with AMX; take tf32 or fp32"):
        trained.run("classifier", "-d", "a", "--precision", "bf16")


def test_pretraining_can_start_from_another_model(trained):
    trained.run("pretrain", "-d", "a", "-s", "tuned", "-f", "model", "--seed", 6)
    record = read_json(f"{PRETRAINED}/tuned_masked_6_1.json")
    assert f"{PRETRAINED}/model_masked_6_1.pt" in record["made_from"]
    trained.config("pretrain", lr=1e-12)
    trained.run("pretrain", "-d", "a", "-s", "still", "-f", "model")
    start, still = (state_of(f"{PRETRAINED}/{stem}_masked_6_1.pt") for stem in ("model", "still"))
    assert all(torch.allclose(start[name], still[name], atol=1e-6) for name in start)


# --------------------------------------------------------------------------------- stages 2a to 3


def test_embeddings_are_the_encoders_representations_of_all_copies(trained):
    embed, labels = np.load("embed/embed_a_20_120.npy"), np.load("embed/label_a_20_120.npy")
    data, original = make_windows(32, seed=1)
    assert embed.shape == (192, 120, 8) and embed.dtype == np.float32 and labels.shape == (192, 120, 2)
    assert np.array_equal(labels, np.concatenate([original] * 6))
    model = MaskedModel(ENCODER).eval()
    model.load_state_dict(state_of(f"{PRETRAINED}/model_masked_6_1.pt"))
    with torch.no_grad():
        h = model.transformer(instance_norm(augment_copies(torch.from_numpy(data), "channel_aug", 5)))
    assert np.abs(h.numpy() - embed).max() < 1e-5


@pytest.mark.parametrize("method", commands.AUGMENTATIONS)
def test_every_augmentation_runs_through_and_is_remembered(project, method):
    """Later stages find the augmentation in the artefacts' JSON; the flag is not needed again."""
    project.run("pretrain", "-d", "a", "-am", method)
    project.run("embedding", "-d", "a"), project.run("classifier", "-d", "a", "-lr", 0.5)
    project.run("cross_dataset_test", "-d", "a", "-td", "b")
    embed = np.load("embed/embed_a_20_120.npy")
    assert len(embed) == 32 * (1 if method == "none" else 6)
    assert read_csv("saved/results.csv")[0]["augment_method"] == method


def test_the_copies_of_stage_2a_are_those_of_stage_1(project, monkeypatch):
    """The seed of the copies is the checkpoint's, whatever the config says by then."""
    seeds = []

    def noted(data, method, seed):
        seeds.append(seed)
        return Copies(data, method, seed)

    for module in (batches, embedding):
        monkeypatch.setattr(module, "Copies", noted)
    project.run("pretrain", "-d", "a", "-am", "jitter", "--seed", 11)
    project.run("embedding", "-d", "a")
    assert seeds == [11, 11]


def test_another_label_column_can_be_classified(trained):
    result = trained.run("classifier", "-d", "a", "-lr", 0.5, "-l", 1, "-s", "who", "-f", "model")
    assert result["names"] == ["ann", "bob", "eve"] and np.array(result["confusion"]).shape == (3, 3)
    result = trained.run("cross_dataset_test", "-d", "a", "-td", "b", "-l", 1, "-s", "who", "-f", "model")
    assert result["names"] == ["ann", "bob", "eve"]
    assert read_csv("saved/results.csv")[-1]["label_index"] == "1"


def test_another_source_and_target_column_of_other_names_is_refused(trained):
    trained.dataset("b", 12, seed=2, user_label=["x", "y", "z"])
    with pytest.raises(UserError, match="ann.*x"):
        trained.run("cross_dataset_test", "-d", "a", "-td", "b", "-l", 1)


@pytest.mark.parametrize("count, method", [(24, "channel_aug"), (40, "channel_aug"), (24, "none"), (40, "none")])
def test_a_few_dozen_windows_are_enough(project, count, method):
    """The batch sizes are the released ones, larger than all there is."""
    project.dataset("a", count, seed=1)
    project.config("pretrain", batch_size=512, n_epochs=2, n_epochs_cl=1), project.config("train", batch_size=128)
    project.stages("-am", method)


def test_float64_windows_give_the_same_as_float32(trained):
    data, labels = make_windows(32, seed=1)
    before = trained.files()
    trained.dataset("a", data=data.astype(np.float64), labels=labels.astype(np.int64))
    trained.stages()
    after = trained.files()
    assert after[f"{PRETRAINED}/model_masked_6_1.pt"] == before[f"{PRETRAINED}/model_masked_6_1.pt"]
    assert after["embed/embed_a_20_120.npy"] == before["embed/embed_a_20_120.npy"]
    assert after[f"{CLASSIFIED}/model_transformer.pt"] == before[f"{CLASSIFIED}/model_transformer.pt"]


def test_windows_whose_label_changes_are_left_out_of_classification(trained, capsys):
    data, labels = make_windows(12, seed=2)
    labels[3, 60:, 0] = 1
    trained.dataset("b", data=data, labels=labels)
    result = trained.run("cross_dataset_test", "-d", "a", "-td", "b")
    assert result["windows"] == 11 and "1 windows of b" in capsys.readouterr().err
    data, labels = make_windows(32, seed=1)
    labels[::3, 60:, 0] = (labels[::3, 60:, 0] + 1) % 4
    trained.dataset("a", data=data, labels=labels)
    trained.run("embedding", "-d", "a")
    result = trained.run("classifier", "-d", "a", "-lr", 1)
    test = utils.split_windows(32, 6, 5, "window")[2]
    assert result["windows"] == sum(row % 32 % 3 != 0 for row in test)
    train = utils.split_windows(32, 6, 5, "window")[0]
    assert f"{sum(row % 32 % 3 != 0 for row in train)} labelled" in capsys.readouterr().out


def test_a_class_without_labels_or_target_windows_is_one_warning(trained, capsys):
    trained.run("classifier", "-d", "a", "-lr", 0.04)  # one window's label
    err = capsys.readouterr().err
    assert err.count("warning:") == 1 and "no labelled window of" in err
    trained.dataset("b", data=make_windows(12, seed=2)[0][::4], labels=make_windows(12, seed=2)[1][::4])
    trained.run("cross_dataset_test", "-d", "a", "-td", "b")
    err = capsys.readouterr().err
    assert err.count("warning:") == 1 and "upstairs, downstairs, sitting&standing" in err


def test_testing_on_the_source_itself_is_warned_of(trained, capsys):
    trained.run("cross_dataset_test", "-d", "a", "-td", "a")
    assert "is the source too" in capsys.readouterr().err


# --------------------------------------------------------------------------------- released files


def test_released_configurations_load_with_one_warning_each(project, capsys):
    project.config("pretrain", RELEASED_PRETRAIN), project.config("train", RELEASED_TRAIN)
    project.config("mask", RELEASED_MASK)
    project.run("pretrain", "-d", "a")
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    assert all(key in warnings[0] for key in ("config/pretrain.json", "warmup", "save_steps"))
    assert "config/mask.json" in warnings[1] and "mask_alpha" in warnings[1]
    assert "total_steps" not in warnings[0]
    project.run("embedding", "-d", "a"), capsys.readouterr()
    project.run("classifier", "-d", "a", "-lr", 0.5)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "config/" in line]
    assert len(warnings) == 1
    for key in ("batch_size_finetune", "lambda1", "lambda2", "warmup", "save_steps"):
        assert key in warnings[0]


def forget_records(project):
    for path in [*project.folder.glob("saved/*/*.json"), *project.folder.glob("embed/*.json")]:
        path.unlink()


def add_weights(path, **more):
    """What the released code saves beside the weights that are used."""
    state = state_of(path)
    torch.save(state | more, path)


def test_released_checkpoints_are_accepted(trained, capsys):
    """Dead weights in both, the contrastive head under its released name, no JSON: the flags count."""
    forget_records(trained)
    folder = trained.folder / PRETRAINED
    add_weights(folder / "model_masked_6_1.pt", **{"fc.weight": torch.zeros(8, 8), "fc.bias": torch.zeros(8)})
    (folder / "model_TC_6_1.pt").rename(folder / "model_Contrastive_6_1.pt")
    path = trained.folder / CLASSIFIED / "model_transformer.pt"
    layer = {n: t for n, t in state_of(path).items() if n.startswith("transformer_encoder.layers.0.")}
    add_weights(path, **{n.replace("transformer_encoder.layers.0.", "encoder_layer."): t for n, t in layer.items()})
    result = trained.run("cross_dataset_test", "-d", "a", "-td", "b", "-lr", 0.3, "-am", "jitter", "--seed", 77)
    assert np.array_equal(result["predictions"], trained.scores["predictions"])
    row = read_csv("saved/results.csv")[-1]
    assert (row["label_rate"], row["augment_method"], row["seed"]) == ("0.3", "jitter", "77")
    trained.run("embedding", "-d", "a")
    trained.run("classifier", "-d", "a", "-lr", 0.5)
    trained.run("pretrain", "-d", "a", "-f", "model", "-s", "tuned")
    made_from = read_json(f"{PRETRAINED}/tuned_TC_6_1.json")["made_from"]
    assert f"{PRETRAINED}/model_Contrastive_6_1.pt" in made_from
    tuned = state_of(f"{PRETRAINED}/tuned_masked_6_1.pt")
    assert not any(name.startswith("fc.") for name in tuned), "dead weights are read, never written"


def test_stages_2a_and_3_need_the_masked_model_alone(trained):
    for path in trained.folder.glob(f"{PRETRAINED}/model_TC_6_1.*"):
        path.unlink()
    trained.run("embedding", "-d", "a"), trained.run("classifier", "-d", "a", "-lr", 0.5)
    trained.run("cross_dataset_test", "-d", "a", "-td", "b")


def test_embeddings_without_a_json_hold_six_copies_or_one_with_none(trained):
    forget_records(trained)
    trained.run("classifier", "-d", "a", "-lr", 0.5)
    record = read_json(f"{CLASSIFIED}/model_transformer.json")
    assert record["config"]["augment_method"] == "channel_aug"
    for kind in ("embed", "label"):
        path = f"embed/{kind}_a_20_120.npy"
        np.save(path, np.load(path)[:32])
    with pytest.raises(UserError, match="32 rows, no multiple of 6"):
        trained.run("classifier", "-d", "a", "-lr", 0.5)
    trained.run("classifier", "-d", "a", "-lr", 0.5, "-am", "none")
    assert read_json(f"{CLASSIFIED}/model_transformer.json")["config"]["augment_method"] == "none"


# --------------------------------------------------------------------------------- commands


@pytest.mark.parametrize("script", ["pretrain.py", "embedding.py", "classifier.py", "cross_dataset_test.py"])
def test_help_is_status_0_and_a_mistyped_flag_is_status_2(project, script):
    status, out, err = project.command(script, "--help")
    assert status == 0 and "--label_rate" in out and err == ""
    status, out, err = project.command(script, "--datset", "a")
    assert status == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and "--datset" in err


def test_the_released_flags_all_exist_with_their_spelling():
    short = "-mv v1 -d uci -td hhar -dv 20_120 -g 0 -f m -t c.json -a m.json -l 1 -s n -lr 0.2 -am jitter --seed 3"
    long = (
        "--model_version v1 --dataset uci --target_dataset hhar --dataset_version 20_120 --gpu 0 --model_file m "
        "--train_cfg c.json --mask_cfg m.json --label_index 1 --save_model n --label_rate 0.2 "
        "--augument_method jitter --seed 3"
    )
    args = pretrain.get_args(short.split())
    assert args == pretrain.get_args(long.split())
    assert args == pretrain.get_args(short.replace("-am", "--augment_method").split())


def test_defaults_are_the_released_ones():
    args = pretrain.get_args([])
    assert (args.model_version, args.dataset, args.target_dataset) == ("v1", "uci", "uci")
    assert (args.dataset_version, args.label_index, args.save_model) == ("20_120", 0, "model")
    assert args.mask_cfg == "config/mask.json"
    scripts = {pretrain: "pretrain", embedding: "pretrain", classifier: "train", cross_dataset_test: "train"}
    for script, config in scripts.items():
        assert script.get_args([]).default_train_cfg == f"config/{config}.json"
