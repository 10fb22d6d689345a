"""reproduce.py: the grid's rows are those of the plain scripts, and a run that was stopped ends like any other."""

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import PRETRAIN, ROOT, Project
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_score, recall_score

import metrics
import models
import pretrain
import reproduce
from bookkeeping import artefacts, configs, ledger
from bookkeeping.commands import UserError
from experiments import baselines, grid, jobs

FLAGS = ["--seeds", "2", "--label_rates", "0.1", "0.5", "--variants", "full", "forest", "--no_figures"]


def run(*flags):
    """reproduce.py in this process, on the CPU."""
    return reproduce.main(reproduce.get_args([*flags, "--jobs", "0", "-g", "cpu"]))


def command(*flags, **more):
    """A process of one of the scripts, with one thread."""
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    how["env"] = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(ROOT / flags[0]), *flags[1:]], **how, **more)


def rows(folder="."):
    with open(f"{folder}/saved/results.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def same_row(row, folder):
    """The row with the same hash in another folder; the columns that only the baselines there have are left out."""
    (found,) = [other for other in rows(folder) if other["config_hash"] == row["config_hash"]]
    assert not any(found[name] for name in found.keys() - row.keys())
    return {name: found[name] for name in row}


def small_project(folder):
    made = Project(folder)
    made.dataset("a", 32, seed=1)
    made.dataset("b", 28, seed=2)
    return made


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a grid of two data sets, two seeds, two label rates, two variants was run undisturbed."""
    made, old = small_project(tmp_path_factory.mktemp("finished")), os.getcwd()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "TREES", 10)
        os.chdir(made.folder)
        run(*FLAGS)
        os.chdir(old)
        yield made.folder


@pytest.fixture
def here(finished, monkeypatch):
    monkeypatch.chdir(finished)
    return finished


def the_grid(*flags):
    return reproduce.make_grid(reproduce.get_args(flags or FLAGS))


def all_cells(made):
    return [cell for job in made.jobs() for cell in made.cells(job)]


def test_every_cell_has_the_row_that_its_hash_foretold(here):
    made, there = the_grid(), ledger.read_rows()
    cells = all_cells(made)
    assert len(cells) == 16 == len(rows())  # 2 pairs, 2 seeds, 2 rates, 2 variants
    for cell in cells:
        row = there[made.key(cell)]
        assert (row["source"], row["target"], float(row["label_rate"])) == (cell.job.source, cell.target, cell.rate)
        assert int(row["seed"]) == cell.seed and row["save_model"] == made.classifier_stem(cell)
    assert len({made.key(cell) for cell in cells}) == 16
    assert not list((here / "embed").glob("*"))  # removed when their classifiers were trained


def test_metrics_are_scikit_learns_on_the_saved_predictions(here):
    made, there = the_grid(), ledger.read_rows()
    for cell in all_cells(made):
        row, key = there[made.key(cell)], made.key(cell)
        window, y, logits = ledger.read_predictions(made.predictions(cell), key)
        p, kinds = logits.argmax(1), dict(labels=range(4), zero_division=0)
        stored = np.load(f"dataset/{cell.target}/label_20_120.npy")[window, 0, 0]
        assert np.array_equal(stored, y) and len(y) == int(row["windows"])
        wanted = {"accuracy": accuracy_score(y, p), "f1_micro": f1_score(y, p, average="micro", **kinds)}
        for name, function in (("precision", precision_score), ("recall", recall_score), ("f1", f1_score)):
            wanted[f"{name}_macro"] = function(y, p, average="macro", **kinds)
        for name, value in wanted.items():
            assert float(row[name]) == pytest.approx(value, abs=1e-6), (cell, name)
        assert metrics.scores(y, p, 4)["confusion"] == confusion_matrix(y, p, labels=range(4)).tolist()
        assert ledger.read_predictions(made.predictions(cell), "another") is None


def test_nothing_is_run_twice(here, monkeypatch):
    before = (here / "saved/results.csv").read_bytes()
    monkeypatch.setattr(jobs, "call", lambda *_, **__: pytest.fail("a finished row was run again"))
    run(*FLAGS)
    assert (here / "saved/results.csv").read_bytes() == before


def test_other_settings_or_data_are_other_rows(here):
    cells = all_cells(the_grid())
    keys = {the_grid().key(cell) for cell in cells}
    for change in (["--epochs", "6"], ["--classifier_epochs", "5"], ["--first_seed", "7"]):
        other = the_grid(*FLAGS, *change)
        forest = {other.key(c) for c in all_cells(other) if change[0] == "--epochs" and c.job.variant == "forest"}
        assert not (keys & {other.key(cell) for cell in all_cells(other)}) - forest, change
    with open("dataset/b/label_20_120.npy", "r+b") as handle:
        old = handle.read()
        try:
            handle.seek(-1, 2), handle.write(b"\x01"), handle.flush()
            assert not keys & {the_grid().key(cell) for cell in cells}
        finally:
            handle.seek(0), handle.write(old)


def test_the_shell_loop_gives_the_same_row(here, tmp_path, monkeypatch):
    small_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    loop = """
    for seed in 3431; do for source in a; do
        "$1" "$2/pretrain.py" -d $source -s full_s$seed --seed $seed --quiet
        "$1" "$2/embedding.py" -d $source -s full_s$seed
        "$1" "$2/classifier.py" -d $source -s full_s$seed -lr 0.1 --seed $seed --quiet
        for target in b; do
            "$1" "$2/cross_dataset_test.py" -d $source -td $target -s full_s$seed
        done
    done; done
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(["bash", "-ec", loop, "-", sys.executable, ROOT], env=environment, check=True, capture_output=True)
    (row,) = rows()
    assert row == same_row(row, here)


def test_killed_then_run_twice_at_once_it_ends_with_the_same_table(here, tmp_path, monkeypatch):
    small_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    flags = ["reproduce.py", "--variants", "full", "--sources", "a", "--jobs", "0", "-g", "cpu", "--no_figures"]
    flags += ["--seeds", "2", "--label_rates", "0.1", "0.5"]
    killed = command(*flags)
    while not list(tmp_path.glob("saved/pretrain*/*_masked_6_1.pt")) and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert len(rows() if (tmp_path / "saved/results.csv").exists() else []) < 4
    other = command(*flags)
    time.sleep(1.5)  # about what it takes to start, so that both meet
    run(*flags[1:])
    output = other.communicate(timeout=300)[0]
    assert other.returncode == 0, output
    keys = [row["config_hash"] for row in rows()]
    assert len(keys) == 4 == len(set(keys))
    (table,) = (tmp_path / "results").glob("table*.csv")
    assert table.name == "table_full_sources=a_seeds=2_label_rates=0.1,0.5.csv"
    monkeypatch.chdir(here)
    run("--table", *flags[1:5], "--seeds", "2", "--label_rates", "0.1", "0.5")
    assert (here / "results" / table.name).read_text() == table.read_text()


def test_two_writers_do_not_corrupt_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = "import sys; sys.path.insert(0, sys.argv[1]); from bookkeeping import artefacts\n"
    code += "for i in range(20): artefacts.append_row('saved/results.csv', {'who': sys.argv[2], 'i': i})"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(ROOT), who]) for who in "xy"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert sorted((r["who"], int(r["i"])) for r in rows()) == [(who, i) for who in "xy" for i in range(20)]


def test_an_interrupted_training_continues_and_ends_the_same(here, tmp_path, monkeypatch):
    small_project(tmp_path)
    monkeypatch.chdir(tmp_path)
    one = ["--sources", "a", "--seeds", "1", "--variants", "full", "--no_figures"]
    epochs = []

    def stop_in_epoch_3(*args, real=models.Classifier.train):
        epochs.append(1)
        if len(epochs) > 4:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(models.Classifier, "train", stop_in_epoch_3)
        run(*one)
    assert list(tmp_path.glob("saved/classifier*/*_state.pt")) and list((tmp_path / "embed").glob("*.npy"))
    run(*one)
    (row,) = rows()
    assert row == same_row(row, here)
    assert not list((tmp_path / "embed").glob("*"))


def test_a_job_that_fails_does_not_stop_the_others(project, capsys):
    project.dataset("c", 4)  # too few windows to train on
    with pytest.raises(SystemExit) as stopped:
        run("--sources", "c", "a", "--targets", "b", "--seeds", "1", "--no_figures")
    assert stopped.value.code == 1
    assert "c_full_s3431: error:" in capsys.readouterr().err
    assert [(r["source"], r["target"]) for r in rows()] == [("a", "b")]


def test_a_target_that_cannot_be_tested_does_not_stop_the_others(project, capsys):
    project.dataset("b", 12, activity_label=["sit", "walk", "run", "fly"])
    project.dataset("c", 12, seed=3)
    with pytest.raises(SystemExit) as stopped:
        run("--sources", "a", "--targets", "b", "c", "--seeds", "1", "--no_figures")
    assert stopped.value.code == 1 and "1 failed:\n  a_full_s3431: -l 0 is activity" in capsys.readouterr().err
    assert [(r["source"], r["target"]) for r in rows()] == [("a", "c")]


def test_what_is_unfinished_or_of_older_data_is_not_current(project):
    made = the_grid("--seeds", "1", "--sources", "a")
    (job,) = made.jobs()
    assert not jobs.is_there(made, job)
    jobs.call(made.pretrain(job))
    assert jobs.is_there(made, job)
    state = made.files(job).pretraining("state", made.weights(job))
    state.touch()
    assert not jobs.is_there(made, job)
    state.unlink()
    project.dataset("a", 32, seed=9)
    assert not jobs.is_there(made, job)


def test_jobs_side_by_side(project, monkeypatch, capsys):
    made = the_grid("--seeds", "3", "--sources", "a")
    code = "import sys; print('$ python pretrain.py'); print(' 50%|'); "
    code += "sys.exit('error: no luck') if sys.argv[1].endswith('2') else 0"
    seen = []

    def fake(argv, job, gpu):
        seen.append((job.name, gpu))
        return [sys.executable, "-c", code, job.name]

    monkeypatch.setattr(jobs, "worker_command", fake)
    found = made.jobs()

    def finished():
        return {job: (0, 1) for job in found}

    failed = jobs.side_by_side([], found, [0, 1], finished, {job: made.work(job) for job in found})
    assert failed == ["a_full_s3432: error: no luck (see results/logs/a_full_s3432.log)"]
    assert sorted(name for name, _ in seen) == ["a_full_s3431", "a_full_s3432", "a_full_s3433"]
    assert {gpu for _, gpu in seen[:2]} == {0, 1}


def test_variants_are_what_their_names_say(project):
    made = the_grid("--variants", "all", "--epochs", "6", "--seeds", "1")
    trained = {job.variant: made.pretrain_config(job) for job in made.jobs() if not made.is_baseline(job.variant)}
    cfg = {name: config["train"] for name, config in trained.items()}
    epochs = {"masked": (6, 0), "joint": (6, 6), "contrastive": (6, 6), "random": (1, 0)}
    found = {name: (c["n_epochs"], c["n_epochs_cl"]) for name, c in cfg.items()}
    assert found == dict.fromkeys(cfg, (6, 3)) | epochs
    assert [name for name, c in cfg.items() if c["lambda1"] == 0] == ["contrastive"]
    assert [name for name, c in cfg.items() if c["split_by"] == "copy"] == ["copy"]
    (copy,) = [job for job in made.jobs() if job.variant == "copy" and job.source == "a"]
    assert made.classifier_config(made.cells(copy)[0])["train"]["split_by"] == "copy"
    for name in ("rotation_random", "jitter", "scaling", "permutation", "none"):
        assert trained[name]["augment_method"] == name
    assert set(made.variants) - set(cfg) == {"cnn", "forest", "end_to_end"}
    with pytest.raises(UserError, match="--variants ful"):
        the_grid("--variants", "ful")


def test_an_odd_schedule_has_its_middle_epoch_with_both_losses(project):
    """As in pretrain.py, where n_epochs_cl is left out."""
    project.config(
        "pretrain", {key: value for key, value in PRETRAIN.items() if key != "n_epochs_cl"} | {"n_epochs": 7}
    )
    default = configs.read_train_config(pretrain.get_args(["-d", "a"]))
    made = the_grid("--epochs", "7", "--seeds", "1")
    assert made.pretrain_config(made.jobs()[0])["train"]["n_epochs_cl"] == default["n_epochs_cl"] == 4


def test_classifier_seeds_share_a_pretrained_model_and_nothing_else(project):
    made = the_grid("--seeds", "2", "--classifier_seeds", "3", "--sources", "a", "--variants", "full", "forest")
    full = [cell for cell in all_cells(made) if cell.job.variant == "full"]
    assert len(full) == 6 and len({str(made.pretrain(cell.job)) for cell in full}) == 2
    assert len({made.classifier_path(cell) for cell in full}) == len({made.key(cell) for cell in full}) == 6
    forest = [cell for cell in all_cells(made) if cell.job.variant == "forest"]
    assert [cell.seed for cell in forest] == [3431, 3432, 3433]  # it is trained once: the classifier's seed is all


def test_long_jobs_come_first(project):
    made = the_grid("--variants", "forest", "full", "cnn", "--epochs", "a=4", "b=40", "--seeds", "1")
    found = made.jobs()
    assert [(job.source, job.variant) for job in found[:2]] == [("b", "full"), ("a", "full")]
    assert {job.variant for job in found[2:]} == {"forest", "cnn"} and len(found) == 6


def test_the_random_encoder_stays_as_it_was_drawn(project):
    made = the_grid("--variants", "random", "--seeds", "1", "--sources", "a")
    (job,) = made.jobs()
    jobs.call(made.pretrain(job))
    saved = torch.load(made.checkpoint(job), weights_only=True)
    torch.manual_seed(job.seed)
    drawn = models.MaskedModel(made.pretrain_config(job)["model"]).state_dict()
    for name, tensor in drawn.items():
        torch.testing.assert_close(saved[name], tensor, rtol=0, atol=1e-29)


def test_a_checkpoint_of_another_configuration_is_made_again(project):
    first = ["--sources", "a", "--seeds", "1", "--no_figures", "--classifier_epochs", "1"]
    run(*first, "--epochs", "2")
    run(*first, "--epochs", "a=3")
    assert [r["epochs"] for r in rows()] == ["2", "3"]
    record = artefacts.load_record(project.folder / "saved/pretrain_base_a_20_120/full_s3431_masked_6_1.pt")
    assert record["config"]["train"]["n_epochs"] == 3


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--sources", "nowhere"], "nowhere"),
        (["--sources", "a", "--targets", "a"], "no pair of data sets"),
        (["--leave_one_out", "--targets", "a"], "no pair of data sets"),
        (["--only", "a_full_s1"], "no job of these flags"),
        (["--table"], "no row of saved/results.csv"),
        (["--figures", "--variants", "cnn"], "no row of saved/results.csv"),
    ],
)
def test_mistakes_are_one_line(project, flags, message):
    with pytest.raises(UserError, match=message):
        run(*flags)


def test_the_precision_is_no_other_experiment():
    """Rounding is none, nor is the device; tests/test_fast.py shows that no stage leaves its own to the next."""
    config = {"train": {}, "precision": "tf32"}
    hashes = {p: ledger.training(config | {"precision": p}, {}) for p in ("fp32", "tf32", "bf16")}
    assert hashes["fp32"] == hashes["tf32"] == hashes["bf16"]
    assert ledger.training(config | {"train": {"seed": 1}}, {}) != hashes["fp32"]


def test_prepared_data_sets(project):
    for name in ("sim", "uci20"):
        project.dataset(name, 8)
    assert grid.prepared("20_120") == ["a", "b"]
    assert reproduce.get_args(["--epochs", "5", "a=6", "b,a=7"]).epochs == [(None, 5), ("a", 6), ("b+a", 7)]
    made = the_grid("--sources", "a", "b,a", "a,b", "--targets", "a", "b", "b", "--epochs", "5", "b,a=7")
    assert (made.sources, made.targets, made.epochs) == (["a", "a+b"], ["a", "b"], {"a": 5, "a+b": 7})
