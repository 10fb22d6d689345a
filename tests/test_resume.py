"""Interrupted training: the same command continues and ends with the files of an undisturbed run, bit for bit."""

import json
import os
import signal

import numpy as np
import pytest
import torch

import classifier
import pretrain
import utils
from bookkeeping import commands, resume
from bookkeeping.commands import UserError
from bookkeeping.resume import Resume

PRETRAIN_A = ("pretrain", "-d", "a")
CLASSIFY_A = ("classifier", "-d", "a", "-lr", 0.5)
STATE = {
    "pretrain": "saved/pretrain_base_a_20_120/model_state_6_1.pt",
    "classifier": "saved/classifier_base_transformer_a_20_120/model_transformer_state.pt",
}


def unchanged(project, before):
    """Names of the files that differ from those of an undisturbed run, or are more or fewer."""
    after = project.files()
    return [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]


def interrupt(monkeypatch, module, name, call, error=KeyboardInterrupt):
    """The `call`-th call of module.name raises `error`; calls before and after go through."""
    original, calls = getattr(module, name), []

    def wrapped(*args, **more):
        calls.append(1)
        if len(calls) == call:
            raise error
        return original(*args, **more)

    monkeypatch.setattr(module, name, wrapped)


@pytest.fixture(params=[0, 1000], ids=["state copied every epoch", "state copied once"])
def copies(request, monkeypatch):
    """How often the state is copied only decides how much work is done again."""
    monkeypatch.setattr(resume, "COPY_SECONDS", request.param)


@pytest.mark.parametrize("call", [2, 3, 4])
def test_pretraining_interrupted_in_any_epoch_ends_with_the_same_bits(trained, monkeypatch, capsys, copies, call):
    """Four epochs, the last two with both losses: stopped in the second, at the change, and in the last."""
    before = trained.files()
    with monkeypatch.context() as patch:
        interrupt(patch, pretrain, "validate", call)
        with pytest.raises(KeyboardInterrupt):
            trained.run(*PRETRAIN_A)
    assert f"state kept in {STATE['pretrain']}" in capsys.readouterr().out
    assert unchanged(trained, before) == [STATE["pretrain"]], (
        "the earlier run's files stay until the new ones are whole"
    )
    trained.run(*PRETRAIN_A)
    assert f"continuing from {STATE['pretrain']}" in capsys.readouterr().out
    assert unchanged(trained, before) == []


@pytest.mark.parametrize("step", [1, 6, 11, 16])
def test_pretraining_interrupted_within_an_epoch_ends_with_the_same_bits(trained, monkeypatch, step):
    """In the first epoch there is no state to keep yet; later the epoch is trained again from its start."""
    monkeypatch.setattr(resume, "COPY_SECONDS", 0)
    before = trained.files()
    with monkeypatch.context() as patch:
        interrupt(patch, pretrain, "train_step", step)
        with pytest.raises(KeyboardInterrupt):
            trained.run(*PRETRAIN_A)
    assert (trained.folder / STATE["pretrain"]).exists() == (step > 4)
    trained.run(*PRETRAIN_A)
    assert unchanged(trained, before) == []


@pytest.mark.parametrize("call", [2, 3, 4])
def test_the_classifier_interrupted_in_any_epoch_ends_with_the_same_bits(trained, monkeypatch, capsys, copies, call):
    before = trained.files()
    with monkeypatch.context() as patch:
        interrupt(patch, classifier, "train_epoch", call)
        with pytest.raises(KeyboardInterrupt):
            trained.run(*CLASSIFY_A)
    assert unchanged(trained, before) == [STATE["classifier"]]
    trained.run(*CLASSIFY_A)
    assert "continuing from" in capsys.readouterr().out
    assert unchanged(trained, before) == []


def test_a_run_interrupted_again_and_again_ends_with_the_same_bits(trained, monkeypatch):
    monkeypatch.setattr(resume, "COPY_SECONDS", 0)
    before = trained.files()
    for script, module, name in ((PRETRAIN_A, pretrain, "validate"), (CLASSIFY_A, classifier, "train_epoch")):
        for _ in range(3):
            with monkeypatch.context() as patch:
                interrupt(patch, module, name, 2)
                with pytest.raises(KeyboardInterrupt):
                    trained.run(*script)
        trained.run(*script)
    assert unchanged(trained, before) == []


def test_the_best_epoch_may_lie_before_the_interruption(trained, monkeypatch):
    """With so high a learning rate the loss soon rises: the weights to save are in the state, not in the networks."""
    monkeypatch.setattr(resume, "COPY_SECONDS", 0)
    trained.config("pretrain", lr=0.4, n_epochs=4, n_epochs_cl=4), trained.config("train", lr=0.2)
    for call, module, name in ((PRETRAIN_A, pretrain, "validate"), (CLASSIFY_A, classifier, "train_epoch")):
        best = trained.run(*call)["best_epoch"]
        assert best < 4
        before = trained.files()
        with monkeypatch.context() as patch:
            interrupt(patch, module, name, best + 1)
            with pytest.raises(KeyboardInterrupt):
                trained.run(*call)
        assert trained.run(*call)["best_epoch"] == best
        assert unchanged(trained, before) == []
        trained.run("embedding", "-d", "a")


def test_views_of_their_own_for_each_epoch_are_found_again(project, monkeypatch):
    monkeypatch.setattr(resume, "COPY_SECONDS", 0)
    project.config("pretrain", views="epoch", n_epochs=3, n_epochs_cl=1)
    project.run(*PRETRAIN_A)
    before = project.files()
    with monkeypatch.context() as patch:
        interrupt(patch, pretrain, "validate", 2)
        with pytest.raises(KeyboardInterrupt):
            project.run(*PRETRAIN_A)
    project.run(*PRETRAIN_A)
    assert unchanged(project, before) == []


def test_a_run_that_began_from_another_model_continues_from_its_own_state(trained, monkeypatch):
    tuned = (*PRETRAIN_A, "-s", "tuned", "-f", "model")
    trained.run(*tuned)
    before = trained.files()
    with monkeypatch.context() as patch:
        interrupt(patch, pretrain, "validate", 3)
        with pytest.raises(KeyboardInterrupt):
            trained.run(*tuned)
    trained.run(*tuned)
    assert unchanged(trained, before) == []


# --------------------------------------------------------------------------------- as commands, by signals

STOP_AT = """
import os, signal, tqdm
from bookkeeping import resume
resume.COPY_SECONDS = 0
resume.WRITE_SECONDS = {write}
epochs, update = [], tqdm.tqdm.update
def stopping(self, *args):
    epochs.append(1)
    if len(epochs) == {epoch}:
        os.kill(os.getpid(), signal.{signal})
    return update(self, *args)
tqdm.tqdm.update = stopping
"""


@pytest.mark.parametrize("script, number", [("pretrain", "SIGTERM"), ("classifier", "SIGINT")])
def test_a_signal_ends_with_130_and_the_command_continues(trained, script, number):
    before = trained.files()
    flags = ("-d", "a", "-g", "cpu", "--quiet", *(("-lr", 0.5) if script == "classifier" else ()))
    prelude = STOP_AT.format(write=1000, epoch=3, signal=number)
    status, out, err = trained.command(f"{script}.py", *flags, prelude=prelude)
    assert (status, err) == (130, "interrupted\n")
    assert "the same command continues" in out
    assert unchanged(trained, before) == [STATE[script]]
    trained.run(script, *flags)
    assert unchanged(trained, before) == []


def test_a_killed_run_continues_from_the_last_state_written(trained, capsys):
    before = trained.files()
    prelude = STOP_AT.format(write=0, epoch=4, signal="SIGKILL")
    process = trained.start("pretrain.py", "-d", "a", "-g", "cpu", "--quiet", prelude=prelude)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    lock = "saved/pretrain_base_a_20_120/.model_masked_6_1.pt.lock"  # nobody's any more, and the next run's to remove
    assert set(unchanged(trained, before)) == {STATE["pretrain"], lock}
    trained.run(*PRETRAIN_A)
    assert "3 of 4 epochs are done" in capsys.readouterr().out
    assert unchanged(trained, before) == []


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM"])
def test_a_signal_before_training_is_130_and_one_line_too(trained, number):
    """While the windows are read: there is no state to keep yet."""
    before = trained.files()
    prelude = f"""
import os, signal
import utils
utils.load_windows = lambda *_: os.kill(os.getpid(), signal.{number})
"""
    status, out, err = trained.command("pretrain.py", "-d", "a", prelude=prelude)
    assert (status, out, err) == (130, "", "interrupted\n")
    assert unchanged(trained, before) == []


def test_ctrl_c_stays_ignored_where_the_shell_ignores_it():
    """A command started with `nohup` or `&` in a script must not answer to another job's Ctrl-C."""
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        commands.on_interrupt(print)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN and signal.getsignal(signal.SIGTERM) == print
    finally:
        signal.signal(signal.SIGINT, handlers[0]), signal.signal(signal.SIGTERM, handlers[1])


# --------------------------------------------------------------------------------- whose state it is


@pytest.fixture
def interrupted(trained, monkeypatch):
    """A project with pretraining and the classifier stopped in their third epoch."""
    monkeypatch.setattr(resume, "COPY_SECONDS", 0)
    for script, module, name in ((PRETRAIN_A, pretrain, "validate"), (CLASSIFY_A, classifier, "train_epoch")):
        with monkeypatch.context() as patch:
            interrupt(patch, module, name, 3)
            with pytest.raises(KeyboardInterrupt):
                trained.run(*script)
    return trained


def another_embedding(project):
    project.run(*PRETRAIN_A, "-s", "x", "--seed", 8)
    project.run("embedding", "-d", "a", "-f", "x", "--seed", 8)


@pytest.mark.parametrize(
    "change, call, wanted",
    [
        (lambda p: p.config("pretrain", lr=0.5), PRETRAIN_A, r"train.lr \(0.003 then, 0.5 now\)"),
        (lambda p: p.config("pretrain", n_epochs=9), PRETRAIN_A, r"train.n_epochs \(4 then, 9 now\)"),
        (lambda p: p.config("mask", mask_prob=0.5), PRETRAIN_A, r"mask.mask_prob \(0.8 then, 0.5 now\)"),
        (lambda p: None, (*PRETRAIN_A, "--seed", "6"), r"train.seed \(5 then, 6 now\)"),
        (lambda p: None, (*PRETRAIN_A, "-am", "jitter"), r"augment_method \(channel_aug then, jitter now\)"),
        (lambda p: None, (*PRETRAIN_A, "-f", "model"), r"made_from.*model_masked_6_1.pt \(absent then"),
        (lambda p: p.dataset("a", 32, seed=9), PRETRAIN_A, r"made_from.dataset/a/data_20_120.npy"),
        (lambda p: p.config("train", batch_size=9), CLASSIFY_A, r"train.batch_size \(16 then, 9 now\)"),
        (lambda p: None, ("classifier", "-d", "a", "-lr", 0.3), r"label_rate \(0.5 then, 0.3 now\)"),
        (lambda p: None, (*CLASSIFY_A, "-l", "1"), r"label_index \(0 then, 1 now\)"),
        (another_embedding, (*CLASSIFY_A, "-f", "x"), "made_from.embed/embedx_a_20_120.npy"),
        (lambda p: setattr(torch, "__version__", "0.1"), PRETRAIN_A, r"torch \(.* then, 0.1 now\)"),
    ],
)
def test_a_state_of_another_run_is_refused_with_the_differing_keys(interrupted, monkeypatch, change, call, wanted):
    monkeypatch.setattr(torch, "__version__", torch.__version__)  # restored after the test
    change(interrupted)
    before = interrupted.files()
    with pytest.raises(UserError, match=wanted) as caught:
        interrupted.run(*call)
    assert "--restart" in str(caught.value)
    assert STATE[call[0]] in str(caught.value) or "was made for other labels" in str(caught.value)
    assert unchanged(interrupted, before) == []


@pytest.mark.parametrize(
    "call, older, wanted", [(PRETRAIN_A, {"path": "fast"}, "fast then"), (CLASSIFY_A, {}, "absent then")], ids=STATE
)
def test_a_state_of_an_older_version_is_refused_in_one_line(interrupted, capsys, call, older, wanted):
    """Whose ways of computing had other names, or none: its numbers differ by rounding."""
    path = STATE[call[0]]
    kept = torch.load(path, weights_only=True)
    config = json.loads(kept["config"])
    assert config.pop("path") == "exact"
    torch.save(kept | {"config": json.dumps(config | older)}, path)
    before = interrupted.files()
    with pytest.raises(UserError, match=rf"another configuration: path \({wanted}, exact now\); .*--restart$") as error:
        interrupted.run(*call)
    assert path in str(error.value) and "\n" not in str(error.value) and unchanged(interrupted, before) == []
    interrupted.run(*call, "--restart")
    assert "continuing" not in capsys.readouterr().out and path not in interrupted.files()


def test_restart_starts_afresh(trained, interrupted, capsys):
    interrupted.config("pretrain", lr=0.002)
    interrupted.run(*PRETRAIN_A, "--restart")
    assert "continuing" not in capsys.readouterr().out
    after = interrupted.files()
    assert STATE["pretrain"] not in after
    interrupted.run(*PRETRAIN_A)
    assert unchanged(interrupted, after) == []


def test_restart_begins_at_the_first_epoch_even_if_the_state_would_fit(trained, interrupted, monkeypatch):
    calls = []
    original = classifier.train_epoch
    monkeypatch.setattr(classifier, "train_epoch", lambda *args: calls.append(1) or original(*args))
    interrupted.run(*CLASSIFY_A, "--restart")
    assert len(calls) == 4


def test_runs_under_other_stems_don_t_share_a_state(interrupted):
    interrupted.run(*PRETRAIN_A, "-s", "other", "--seed", 6)
    assert (interrupted.folder / STATE["pretrain"]).exists()


# --------------------------------------------------------------------------------- the state file itself


def test_states_are_written_seldom_and_copied_seldom(tmp_path, monkeypatch):
    """Once a second, once every fifteen: under 1 % of any run, however short its epochs."""
    assert resume.COPY_SECONDS >= 1 and resume.WRITE_SECONDS >= 15

    class Part:
        def state_dict(self):
            made.append(clock[0])
            return {}

    clock, made = [0.0], []
    monkeypatch.setattr(resume.time, "monotonic", lambda: clock[0])
    state = Resume(tmp_path / "state.pt", {})
    written = []
    monkeypatch.setattr(state, "write", lambda: written.append(clock[0]) or setattr(state, "last_write", clock[0]))
    for epoch in range(1000):
        clock[0] = epoch * 0.1
        state.after_epoch({"model": Part()}, epoch=epoch)
    assert 90 <= len(made) <= 101 and len(written) == 6


def test_a_copied_state_does_not_change_with_the_run():
    weights = torch.zeros(3)
    kept = resume.copied({"a": [weights, (weights, 1)], "b": {"c": "x"}})
    weights += 1
    assert kept["a"][0].sum() == 0 and kept["a"][1][0].sum() == 0 and kept["b"] == {"c": "x"}


def test_a_failing_loop_keeps_the_last_state_and_its_error(tmp_path):
    state = Resume(tmp_path / "state.pt", {"seed": 1})
    with pytest.raises(ZeroDivisionError), state.guard():
        state.after_epoch({"layer": torch.nn.Linear(1, 1)}, epoch=1, x=torch.ones(2))
        raise ZeroDivisionError
    loaded = Resume(tmp_path / "state.pt", {"seed": 1}).load()
    assert loaded["epoch"] == 1 and torch.equal(loaded["x"], torch.ones(2))
    state.finished()
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_an_error_before_the_first_epoch(project, monkeypatch):
    (project.folder / "saved").write_text("in the way")
    monkeypatch.setattr(pretrain, "train_step", lambda *_: pytest.fail("trained before it was known to be in vain"))
    with pytest.raises(UserError, match="saved/pretrain_base_a_20_120/.* cannot be written"):
        project.run(*PRETRAIN_A)


# --------------------------------------------------------------------------------- numbers that are none


def test_a_loss_that_is_not_finite_stops_pretraining_and_keeps_the_last_good_state(trained, monkeypatch):
    monkeypatch.setattr(resume, "COPY_SECONDS", 0)
    before = trained.files()
    original, calls = pretrain.validate, []

    def diverging(*args):
        calls.append(1)
        return original(*args) * (torch.nan if len(calls) == 3 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "validate", diverging)
        with pytest.raises(UserError, match="not finite in epoch 3 .*val_masked nan.*'lr'"):
            trained.run(*PRETRAIN_A)
    assert unchanged(trained, before) == [STATE["pretrain"]]
    kept = torch.load(STATE["pretrain"], weights_only=True)["state"]
    assert kept["epoch"] == 2 and all(torch.isfinite(weights).all() for weights in kept["model"].values())
    trained.run(*PRETRAIN_A)
    assert unchanged(trained, before) == []


def test_a_loss_that_is_not_finite_stops_the_classifier(trained, monkeypatch):
    before = trained.files()
    interrupt_with = torch.tensor(torch.inf)
    monkeypatch.setattr(classifier, "train_epoch", lambda *_: interrupt_with)
    with pytest.raises(UserError, match="not finite in epoch 1 .*training inf"):
        trained.run(*CLASSIFY_A)
    assert unchanged(trained, before) == []


def test_a_learning_rate_that_explodes_is_an_error_not_a_file_of_nan(project):
    project.config("pretrain", lr=10, n_epochs=5, n_epochs_cl=5)
    try:
        paths = project.run(*PRETRAIN_A)["paths"]
    except UserError as error:
        assert "not finite in epoch" in str(error)
    else:  # it may also survive, with finite weights
        assert all(torch.isfinite(w).all() for path in paths for w in torch.load(path, weights_only=True).values())


# --------------------------------------------------------------------------------- --deterministic


def test_deterministic_sets_what_torch_and_cublas_need(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    was = torch.are_deterministic_algorithms_enabled()
    try:
        utils.set_deterministic()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(was)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@pytest.mark.parametrize("script", ["embedding", "classifier", "cross_dataset_test"])
def test_deterministic_changes_nothing_on_the_cpu(trained, monkeypatch, script):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    called = []
    monkeypatch.setattr(
        utils, "set_deterministic", lambda: called.append(1) or torch.use_deterministic_algorithms(True)
    )
    before = trained.files()
    flags = {"classifier": ["-lr", 0.5], "cross_dataset_test": ["-td", "b"]}.get(script, [])
    try:
        trained.run(script, "-d", "a", *flags, "--deterministic")
    finally:
        torch.use_deterministic_algorithms(False)
    assert called and set(unchanged(trained, before)) <= {"saved/results.csv"}


def test_the_records_of_resumed_and_undisturbed_runs_agree(interrupted, all_stages):
    interrupted.run(*PRETRAIN_A)
    name = "saved/pretrain_base_a_20_120/model_masked_6_1.json"
    assert json.loads((interrupted.folder / name).read_text()) == json.loads((all_stages[0] / name).read_text())
    assert np.array_equal(interrupted.scores["predictions"], all_stages[2]["predictions"])
