"""torchrun: two processes train what one trains, one of them speaks and writes, and none outlives another."""

import os
import re
import subprocess
import sys

import pytest
import torch
from conftest import ENCODER, ROOT

import plain
import pretrain
from bookkeeping import commands
from bookkeeping.commands import UserError
from fast import parallel
from models import Contrastive, MaskedModel

STEM = "saved/pretrain_base_a_20_120"
# pretrain.py, in whose third epoch the second process is killed if KILL is set, or the disk is full if FULL is. What is
# registered first runs last: a process says how many threads are left just before Python shuts down (one that has ended
# is listed for a moment more)
SCRIPT = f"""
import atexit, os, runpy, signal, sys, time
def say_what_is_left():
    end = time.monotonic() + 3
    while len(os.listdir("/proc/self/task")) > 1 and time.monotonic() < end:
        time.sleep(0.01)
    sys.stderr.write("threads left: %d\\n" % len(os.listdir("/proc/self/task")))
if os.path.isdir("/proc/self/task"):
    atexit.register(say_what_is_left)
sys.path.insert(0, {str(ROOT)!r})
from bookkeeping import resume
resume.COPY_SECONDS = 0
original, epochs = resume.Resume.after_epoch, []
def after_epoch(self, parts, **more):
    import torch.distributed.nn.functional  # as torch.compile does, or whatever else
    original(self, parts, **more)
    epochs.append(1)
    if len(epochs) == 3 and os.environ["RANK"] == "1" and os.environ.get("KILL"):
        os.kill(os.getpid(), signal.SIGKILL)
    if len(epochs) == 3 and os.environ.get("FULL"):
        raise OSError("no space left")
resume.Resume.after_epoch = after_epoch
runpy.run_path({str(ROOT / "pretrain.py")!r}, run_name="__main__")
"""


def left(err):
    """How many threads each process that ended in order had left, by what SCRIPT printed."""
    return re.findall(r"threads left: (\d+)", err)


def torchrun(project, *flags, processes=2, **environment):
    """(exit status, stdout, stderr) of pretrain.py as torchrun runs it on CPUs."""
    script = project.folder / "script.py"
    script.write_text(SCRIPT)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [sys.executable, *launcher, script, "-d", "a", "-g", "cpu", *flags]
    how = {"text": True, "capture_output": True, "timeout": 120}
    how["env"] = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(list(map(str, command)), cwd=project.folder, **how)
    return done.returncode, done.stdout, done.stderr


def test_two_processes_give_what_one_gives_even_after_one_was_killed(project, capsys):
    """The losses to 1e-3, in both halves, and each weight to 1 % of its change; what is continued is streamed besides.

    Of a tensor's change, not of each number in it: Adam divides a gradient by its own size, so where a gradient is
    almost 0 what rounding leaves of it, which differs between processors, decides about a whole step of that number.
    A bias that stands before BatchNorm has an exact gradient of 0 throughout.
    """
    project.dataset("a", 64, seed=1)
    one = project.run("pretrain", "-d", "a", "-s", "one")
    torch.manual_seed(5)
    start = {"masked": MaskedModel(ENCODER).state_dict(), "TC": Contrastive(ENCODER["hidden"]).state_dict()}
    told = capsys.readouterr().out
    status, out, err = torchrun(project, "-s", "two", KILL="1")
    assert status != 0 and err.count("Traceback") == 1, "torchrun's own report, none of ours"
    # whichever comes first to the process that is left: the broken connection or torchrun's signal
    assert re.search("^(error|interrupted): another process .*; the same command continues the run$", err, re.MULTILINE)
    assert f"state kept in {STEM}/two_state_6_1.pt; the same command continues from there" in out
    assert sorted(path.name for path in (project.folder / STEM).glob("*two*")) == ["two_state_6_1.pt"]

    status, out, err = torchrun(project, "-s", "two", "--memory_gb", 0, "--quiet")
    assert status == 0, err
    lines = out.splitlines()
    assert f"continuing from {STEM}/two_state_6_1.pt: 3 of 4 epochs are done" in out
    assert [line for line in lines if line.startswith("a: ")] == [told.splitlines()[0]], "one process speaks"
    assert sum("lowest validation loss" in line for line in lines) == 1
    assert err.count("epoch/s") == 0
    assert left(err) in (["1", "1"], []), "none where the system has no /proc"

    names = {path.name.replace("one", "two") for path in (project.folder / STEM).glob("*one*")}
    assert {path.name for path in (project.folder / STEM).glob("*two*")} == names
    history = (project.folder / STEM / "two_losses_6_1.csv").read_text().splitlines()[1:]
    for row, line in zip(one["history"], history, strict=True):
        assert list(row.values()) == pytest.approx(list(map(float, line.split(","))), rel=1e-3)
    for part in ("masked", "TC"):
        found, wanted = (
            torch.load(project.folder / STEM / f"{stem}_{part}_6_1.pt", weights_only=True) for stem in ("two", "one")
        )
        for name in wanted:  # the running variance too: that of the whole batch's view, not of a process's share
            if name not in ("projection_head.0.bias", "projection_head.1.running_mean"):
                change = (wanted[name] - start[part][name]).float().norm()
                assert (found[name] - wanted[name]).float().norm() <= 0.01 * change, name


def test_no_thread_outlives_a_mistake(project):
    """A thread of Gloo's that lets go of a tensor while Python shuts down would end the process with SIGABRT."""
    status, _, err = torchrun(project, "--quiet", FULL="1")
    assert status != 0 and re.search("^error.*: no space left$", err, re.MULTILINE) and "terminate called" not in err
    assert set(left(err)) <= {"1"}, err


def test_mistakes_name_the_process_and_warnings_come_from_the_first(monkeypatch, capsys):
    def main(_):
        commands.warn("odd")
        raise UserError("no such\nthing")

    monkeypatch.setattr(commands, "on_interrupt", lambda handler: None)  # this process goes on
    monkeypatch.setattr(commands, "check_processes", lambda several: None)
    for rank, wanted in (("0", "warning: odd\nerror: no such thing\n"), ("3", "error in process 3: no such thing\n")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit, match="2"):
            commands.run(main, lambda: None)
        assert capsys.readouterr().err == wanted


# ------------------------------------------------------------------------------------------ without processes


def test_without_torchrun_there_is_one_process(project):
    alone = parallel.Processes("cpu")
    assert (alone.rank, alone.size, alone.first, alone.device.type) == (0, 1, True, "cpu")
    assert alone.share(7) == slice(0, 7)
    x = torch.randn(2, 3, 4)
    assert alone.gather(x) is x
    alone.average([x]), alone.wait(), alone.leave()


@pytest.fixture
def second_of_two(monkeypatch):
    """What the second of two processes is, without the first: collectives are stand-ins."""
    monkeypatch.setenv("RANK", "1"), monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(parallel.dist, "init_process_group", lambda backend, device_id: None)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # restored after the test
    made = parallel.Processes("cpu")
    sys.stdout.close()
    return made


def test_a_batch_is_shared_equally_or_refused(second_of_two):
    assert second_of_two.share(8) == slice(4, 8)
    with pytest.raises(UserError, match="7 windows is no multiple of the 2 processes; change 'batch_size'"):
        second_of_two.share(7)


class Done:
    """A collective operation that has ended."""

    def is_completed(self):
        return True

    def wait(self):
        pass


def test_gathering_keeps_the_order_of_the_batch_and_its_gradient_is_the_shares(second_of_two, monkeypatch):
    def all_gather(shares, x, async_op):
        shares[0].fill_(7), shares[1].copy_(x)
        return Done()

    monkeypatch.setattr(parallel.dist, "all_gather", all_gather)
    x = torch.randn(2, 3, 4, requires_grad=True)
    everything = second_of_two.gather(x)
    assert torch.equal(everything[:, 3:], x) and (everything[:, :3] == 7).all()
    factor = torch.randn(2, 6, 4)
    (everything * factor).sum().backward()
    assert torch.allclose(x.grad / 2, factor[:, 3:]), "the mean over two processes makes the 2 good"


def test_a_process_that_has_gone_is_one_clear_error(second_of_two, monkeypatch):
    def gone(*_, async_op):
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(parallel.dist, "all_reduce", gone)
    with pytest.raises(UserError, match="another process .* has ended; the same command continues the run"):
        second_of_two.wait()


def test_each_process_has_its_own_gpu(monkeypatch):
    monkeypatch.setenv("RANK", "1"), monkeypatch.setenv("WORLD_SIZE", "2"), monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(UserError, match="-g 0: under torchrun each process takes a GPU of its own"):
        parallel.Processes("0")


def test_batches_that_are_dealt_out_make_the_same_validation_loss(monkeypatch):
    """Every process validates whole batches; the mean of what they return is what one process returns."""

    class Rows:
        def __len__(self):
            return 11

        def between(self, start, stop):
            return torch.arange(start, stop, dtype=torch.float32)

    class Masks:
        def pick(self, index):
            return None

    def losses(engine, model, head, views, *_):
        return views.mean(), views.square().mean()

    class Member(plain.Alone):
        def __init__(self, rank, size):
            super().__init__(torch.device("cpu"))
            self.rank, self.size = rank, size

    def validate(rank, size):
        networks = {"model": None, "head": None, "optimizer": None}
        return pretrain.validate(plain.Plain(Member(rank, size)), networks, Rows(), Masks(), 3, True)

    monkeypatch.setattr(pretrain, "losses", losses)
    for size in (1, 2, 3, 7):
        total = torch.stack([validate(rank, size) for rank in range(size)]).mean(0)
        torch.testing.assert_close(total, validate(0, 1))
    torch.testing.assert_close(validate(0, 1), torch.tensor([5.0, 35.0]))  # of the numbers 0 to 10
