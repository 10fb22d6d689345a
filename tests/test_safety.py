"""Never silently wrong: files and folders that are not what the scripts expect, and runs that meet on one of them."""

import errno
import json
import os
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import CLASSIFIER, ENCODER, PRETRAIN, ROOT, TRAIN

import reproduce
from bookkeeping import artefacts, configs, ledger, locks
from bookkeeping.commands import UserError
from dataset import prepare, store
from experiments import baselines

TEST = ("cross_dataset_test", "-d", "a", "-td", "b")
FOREST = ("experiments.baselines", "-d", "a", "-td", "b", "-b", "forest")
RESULTS = "saved/results.csv"


# ------------------------------------------------------------------------------------------------- the screen


def test_a_screen_without_arrows_is_no_traceback():
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": str(ROOT)}
    code = "from bookkeeping import commands; commands.run(lambda _: print('a → b ± 0.1'), lambda: None)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"a ? b ? 0.1\n", b"")


# ------------------------------------------------------------------------------------------------- locks


def other_process(path):
    """A process that holds a lock until it is killed."""
    code = f"from bookkeeping.locks import locked\nwith locked({str(path)!r}):\n print('held', flush=True); input()"
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    process = subprocess.Popen([sys.executable, "-c", code], **how)
    assert process.stdout.readline() == "held\n"
    return process


def test_a_lock_refuses_another_dies_with_its_process_and_leaves_nothing(tmp_path):
    path = tmp_path / "new/.lock"
    process = other_process(path)
    with pytest.raises(UserError, match="^in use$"), locks.locked(path, "in use"):
        pass
    process.kill(), process.communicate()
    with locks.locked(path, "in use"):
        with pytest.raises(UserError, match="^in use$"), locks.locked(path, "in use"):
            pass
        assert path.exists()
    assert not list(path.parent.iterdir())
    with pytest.raises(ValueError), locks.locked(path, "in use"):
        raise ValueError
    with locks.locked(path, "in use"):
        pass


def test_who_waits_for_a_lock_gets_it_when_its_file_has_gone(tmp_path):
    """Many processes add 1 to a number, each reading before and writing after the others'."""
    code = (
        "import sys, time\nfrom bookkeeping.locks import locked\n"
        "for _ in range(15):\n with locked(sys.argv[1] + '.lock'):\n"
        "  n = int(open(sys.argv[1]).read()); time.sleep(0.001); open(sys.argv[1], 'w').write(str(n + 1))"
    )
    (tmp_path / "n").write_text("0")
    jobs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "n")], cwd=ROOT) for _ in range(4)]
    assert [job.wait() for job in jobs] == [0] * 4
    assert (tmp_path / "n").read_text() == "60" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks_is_a_warning(trained, monkeypatch, capsys, number):
    def flock(*_):
        raise OSError(number, "no locks here")

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    locks.warn_once.cache_clear()
    rows = len(artefacts.read_table(RESULTS))
    trained.run(*TEST), trained.run(*TEST)
    assert len(artefacts.read_table(RESULTS)) == rows + 2
    assert capsys.readouterr().err.count("a file system without locks: run one command at a time") >= 1
    with store.changing("new") as entries:
        entries["20_120"] = {"sr": 20}
    assert "20_120" in artefacts.read_json("dataset/new/entry.json", "")
    assert not list(trained.folder.rglob(".*lock"))


# ------------------------------------------------------------------------------------------------- results.csv


def test_a_table_that_is_a_link_stays_one(trained):
    table, real = trained.folder / RESULTS, trained.folder / "elsewhere/all.csv"
    real.parent.mkdir()
    table.rename(real)
    table.symlink_to(real)
    trained.run(*TEST)
    assert table.is_symlink() and len(artefacts.read_table(real)) == 2
    entry = trained.folder / "dataset/b/entry.json"
    entry.symlink_to("../../elsewhere/entry.json")
    with store.changing("b") as entries:
        entries["20_120"] = {"sr": 20}
    assert entry.is_symlink() and "20_120" in artefacts.read_json(trained.folder / "elsewhere/entry.json", "")


@pytest.mark.parametrize(
    "text", ["name,value\n", "name,value\nx,1\n", "source,target,f1\n", "source\n", ",".join(ledger.FIRST[::-1]) + "\n"]
)
@pytest.mark.parametrize("script", [TEST, FOREST], ids=["stage 3", "baselines"])
def test_a_table_of_somebody_else_is_refused_and_nothing_written(trained, text, script):
    (trained.folder / RESULTS).write_text(text)
    before = trained.files()
    with pytest.raises(UserError, match="results.csv is another table"):
        trained.run(*script)
    assert trained.files() == before


@pytest.mark.parametrize("text", ["", ",".join(ledger.FIRST) + ",more\n"])
def test_an_empty_table_is_a_table(trained, text):
    (trained.folder / RESULTS).write_text(text)
    trained.run(*TEST)
    header = (trained.folder / RESULTS).read_text().splitlines()[0]
    assert header.startswith(",".join(ledger.FIRST) + (",more," if text else ","))
    assert len(ledger.read_rows()) == 1


# ------------------------------------------------------------------------------------------------- bombs


def packed(path, size=1 << 26):
    """The zip archive `path` again, compressed, with a member of `size` zeros more."""
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    first = next(iter(members)).split("/")[0]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in (members | {f"{first}/data/999": bytes(size)}).items():
            archive.writestr(name, content)


@pytest.mark.parametrize("which", ["masked_6_1.pt", "transformer.pt"])
def test_a_checkpoint_that_unpacks_to_far_more_than_it_is(trained, which):
    (path,) = trained.folder.glob(f"saved/*/model_{which}")
    packed(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(UserError, match="would unpack to 0.0"):
        trained.run(*TEST)


def test_predictions_and_training_states_that_unpack_to_far_more_than_they_are(trained):
    (path,) = trained.folder.glob("saved/*/*.npz")
    key = ledger.read_npz(path)["config_hash"]
    packed(path)
    for read in (ledger.read_npz, lambda p: ledger.read_predictions(p, key)):
        with pytest.raises(UserError, match="is not a readable file of predictions .it would unpack"):
            read(path)
    state = trained.folder / "saved/pretrain_base_a_20_120/model_state_6_1.pt"
    torch.save({"x": torch.zeros(3)}, state)
    packed(state)
    with pytest.raises(UserError, match="is not a readable training state"):
        trained.run("pretrain", "-d", "a")


def test_a_header_that_promises_more_than_there_is_takes_no_memory(trained):
    (path,) = trained.folder.glob("saved/*/*.npz")
    with zipfile.ZipFile(path) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    shape = str(np.load(path)["logits"].shape).encode()
    assert members["logits.npy"].count(shape) == 1
    members["logits.npy"] = members["logits.npy"].replace(shape, b"(9999999999999,4)"[: len(shape) + 11])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match="is not a readable file of predictions"):
        ledger.read_npz(path)


# ------------------------------------------------------------------------------------------------- stems

STAGES = {
    "pretrain": ("pretrain", "-d", "a"),
    "embedding": ("embedding", "-d", "a"),
    "classifier": ("classifier", "-d", "a", "-lr", 0.5),
    "baselines": ("experiments.baselines", "-d", "a", "-td", "b", "-b", "cnn", "-lr", 0.5),
    "forest": (*FOREST, "-lr", 0.5),
}
ARTEFACT = {
    "pretrain": "saved/pretrain_base_a_20_120/model_masked_6_1.pt",
    "embedding": "embed/embed_a_20_120.npy",
    "classifier": "saved/classifier_base_transformer_a_20_120/model_transformer.pt",
    "baselines": "saved/baseline_cnn_a_20_120/model.pt",
    "forest": "saved/baseline_forest_a_20_120/model.pt",
}


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_command_replaces_without_a_word_and_another_seed_with_one(trained, capsys, stage):
    trained.run(*STAGES[stage]), trained.run(*STAGES[stage])
    assert "replacing" not in capsys.readouterr().out
    if stage == "embedding":  # whose seed is the pretrained model's
        trained.run("pretrain", "-d", "a", "--seed", 7)
        capsys.readouterr()
        trained.run(*STAGES[stage])
    else:
        trained.run(*STAGES[stage], "--seed", 7)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("replacing")]
    assert line.startswith(f"replacing {ARTEFACT[stage]}: ") and "seed (5 then, 7 now)" in line


@pytest.mark.parametrize("stage", ["classifier", "baselines", "forest"])
@pytest.mark.parametrize("changed", ["column", "names"])
def test_another_label_column_or_class_list_is_refused_without_restart(trained, capsys, stage, changed):
    trained.run(*STAGES[stage])
    command, key = [*STAGES[stage], "-l", 1], "label_index"
    if changed == "names":
        command, key = STAGES[stage], "classes"
        for name, count, seed in (("a", 32, 1), ("b", 12, 2)):
            trained.dataset(name, count, seed=seed, activity_label=["walking", "upstairs", "downstairs", "sitting"])
        trained.run("embedding", "-d", "a")
    before = trained.files()
    with pytest.raises(UserError, match=f"was made for other labels: {key} .*; choose another -s, or give --restart"):
        trained.run(*command)
    assert trained.files() == before
    capsys.readouterr()
    trained.run(*command, "--restart")
    assert key in capsys.readouterr().out.partition("replacing")[2].splitlines()[0]


def test_a_released_file_is_replaced_with_a_line(trained, capsys):
    (trained.folder / ARTEFACT["pretrain"]).with_suffix(".json").unlink()
    trained.run(*STAGES["pretrain"])
    assert f"replacing {ARTEFACT['pretrain']}, of which no JSON says how" in capsys.readouterr().out


@pytest.mark.parametrize("stage", STAGES)
def test_two_runs_on_one_stem(trained, stage):
    folder, name = os.path.split(ARTEFACT[stage])
    before = trained.files()
    process = other_process(trained.folder / folder / f".{name}.lock")
    try:
        with pytest.raises(UserError, match=f"{name} is being made by another run"):
            trained.run(*STAGES[stage])
        found = trained.files()
        assert {path: found[path] for path in found if not path.endswith(".lock")} == before
        if stage != "embedding":
            trained.run(*STAGES[stage], "-s", "other", *(("-f", "model") if stage == "classifier" else ()))
    finally:
        process.kill(), process.communicate()
    trained.run(*STAGES[stage])
    assert not list(trained.folder.rglob(".*.lock"))


def test_a_run_that_fails_leaves_the_stem_free(trained):
    path = trained.folder / "embed/embed_a_20_120.npy"
    np.save(path, np.full_like(np.load(path), np.nan))
    path.with_suffix(".json").unlink()
    caught = None
    try:
        trained.run(*STAGES["classifier"])
    except UserError as error:
        caught = error  # with the frames of the run, as a notebook keeps it
    assert caught and not list(trained.folder.rglob(".*.lock"))


# ------------------------------------------------------------------------------------------------- commands in messages


def test_the_command_in_a_message_is_the_one_that_works(project):
    """From nothing to a test, with other flags everywhere, only by doing what the messages say."""
    for name in ("a", "b"):
        config = project.datasets.pop(f"{name}_20_120")
        project.datasets[f"{name}_20_60"] = config | {"seq_len": 60}
        for kind in ("data", "label"):
            path = project.folder / "dataset" / name
            np.save(path / f"{kind}_20_60.npy", np.load(path / f"{kind}_20_120.npy")[:, :60])
    (project.folder / "dataset/data_config.json").write_text(json.dumps(project.datasets))
    project.config("pretrain_model", base_v3=ENCODER | {"seq_len": 60})
    project.config("classifier", transformer_v3=CLASSIFIER)
    project.config("mine", PRETRAIN | {"n_epochs": 2, "n_epochs_cl": 1}), project.config("own", TRAIN | {"n_epochs": 1})
    test = ["cross_dataset_test", "-d", "a", "-td", "b", "-dv", "20_60", "-mv", "v3", "-s", "second", "-f", "first"]
    test += ["-t", "config/own.json", "--seed", "9"]
    done = []
    for _ in range(6):
        try:
            project.run(*test)
            break
        except UserError as error:
            todo = [str(error)]
            while todo:
                for script, *flags in commands_in(todo.pop()):
                    done.append([script, *flags])
                    try:
                        project.run(script, *flags)
                    except UserError as inner:
                        todo.append(str(inner))
                        break
    else:
        raise AssertionError(done)
    names = {path.name for path in project.folder.rglob("*.pt")}
    assert names == {"first_masked_6_1.pt", "first_TC_6_1.pt", "second_transformer.pt"}
    of_classifier = [flags for script, *flags in done if script == "classifier"][-1]
    assert of_classifier[of_classifier.index("-t") + 1] == "config/own.json" and "9" in of_classifier
    assert all("config/own.json" not in flags for script, *flags in done if script in ("pretrain", "embedding"))


def commands_in(message):
    """The commands that a message names: [[script, flag, ...], ...]."""
    text = message.partition(": python ")[2]
    return [[part.split(".py")[0], *part.split()[1:]] for part in text.replace("&& python ", "&& ").split(" && ")]


@pytest.mark.parametrize(
    "dataset, version, wanted",
    [
        ("uci", "20_120", "python dataset/prepare.py -d uci$"),
        ("uci20", "20_120", "python dataset/prepare.py -d sim$"),
        ("mine", "20_120", "python dataset/prepare.py -d mine --raw FOLDER --recordings FILE.json$"),
        ("uci", "50_120", "put your own there, or choose another -dv$"),
    ],
)
def test_what_to_do_about_missing_windows(project, dataset, version, wanted):
    project.dataset(dataset)
    entry = project.datasets.pop(f"{dataset}_20_120") | {"sr": int(version[:2])}
    project.datasets[f"{dataset}_{version}"] = entry
    (project.folder / "dataset/data_config.json").write_text(json.dumps(project.datasets))
    for path in (project.folder / "dataset" / dataset).glob("*.npy"):
        path.unlink()
    with pytest.raises(UserError, match=wanted):
        project.run("pretrain", "-d", dataset, "-dv", version)


def test_every_built_in_set_is_prepared_by_the_command_named():
    assert set(configs.PREPARED.values()) == set(prepare.BUILT_IN) and set(configs.PREPARED) == {
        *prepare.BUILT_IN,
        "uci20",
    }


def test_a_grid_of_another_label_column_has_stems_of_its_own(project, monkeypatch):
    monkeypatch.setattr(baselines, "TREES", 5)
    project.dataset("b", 28, seed=2)
    for column in ("0", "1", "0"):
        flags = ["--variants", "forest", "--jobs", "0", "-g", "cpu", "--seeds", "1", "-l", column, "--no_figures"]
        reproduce.main(reproduce.get_args(flags))
    stems = {row["save_model"]: row["label_index"] for row in artefacts.read_table(RESULTS)}
    assert sorted(stems.values()) == ["0", "1"] and len(artefacts.read_table(RESULTS)) == 4
