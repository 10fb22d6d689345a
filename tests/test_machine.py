"""Memory that is left, on made-up folders of the system; torchrun's variables without torchrun, and peers that hang."""

import importlib
import inspect
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from bookkeeping import commands, machine

GB = 10**9


@pytest.fixture
def system(tmp_path):
    """Writes files {path: text} below a folder with 16 GB available; returns what is left by them."""
    (tmp_path / "proc/self").mkdir(parents=True, exist_ok=True)
    (tmp_path / "proc/meminfo").write_text(f"MemTotal: 99999999 kB\nMemAvailable: {16 * GB // 1024} kB\n")

    def left(cgroup, files):
        (tmp_path / "proc/self/cgroup").write_text(cgroup)
        for name, text in files.items():
            path = tmp_path / "sys" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir() if text is None else path.write_text(text)
        return machine.available_memory(tmp_path / "proc", tmp_path / "sys")

    return left


@pytest.mark.parametrize(
    "cgroup, files, wanted",
    [
        ("0::/\n", {}, 16),
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/b/memory.current": "5\n"}, 16),
        ("0::/\n", {"memory.max": f"{4 * GB}\n", "memory.current": f"{GB}\n"}, 3),
        ("0::/a/b\n", {"a/memory.max": f"{4 * GB}", "a/memory.current": f"{GB}", "a/b/memory.max": "max"}, 3),
        (
            "0::/a/b\n",
            {
                "a/b/memory.max": f"{GB}",
                "a/b/memory.current": "0",
                "a/memory.max": f"{9 * GB}",
                "a/memory.current": "0",
            },
            1,
        ),
        ("4:memory:/x/y\n", {"memory/x/memory.limit_in_bytes": f"{6 * GB}", "memory/x/memory.usage_in_bytes": "0"}, 6),
        (
            "4:cpu,memory:/x\n",
            {"memory/x/memory.limit_in_bytes": "9223372036854771712", "memory/x/memory.usage_in_bytes": "7"},
            16,
        ),
        ("4:memory:/gone\n", {"memory/memory.limit_in_bytes": f"{5 * GB}", "memory/memory.usage_in_bytes": "0"}, 5),
        ("0::/\n", {"memory.max": None}, 2),  # there, and not to be read
        ("0::/a\n", {"a/memory.max": f"{9 * GB}"}, 2),  # its usage is not there
        ("0::/\n", {"memory.max": "much\n", "memory.current": "0"}, 2),
        ("0::/\n", {"memory.max": f"{GB}", "memory.current": f"{2 * GB}"}, 0),
        ("no colons", {}, 16),
    ],
)
def test_the_tightest_limit_counts(system, cgroup, files, wanted):
    assert system(cgroup, files) == pytest.approx(wanted * GB, rel=1e-6)


def test_a_limit_on_the_address_space_counts_less_what_is_taken(system, monkeypatch, tmp_path):
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (4 * GB, 4 * GB))
    monkeypatch.setattr(machine.resource, "getpagesize", lambda: 4096)
    (tmp_path / "proc/self").mkdir(parents=True, exist_ok=True)
    (tmp_path / "proc/self/statm").write_text(f"{GB // 4096} 7 7 7 0 7 0\n")
    assert system("0::/\n", {}) == pytest.approx(3 * GB, rel=1e-5)
    (tmp_path / "proc/self/statm").unlink()
    assert system("0::/\n", {}) == machine.UNREADABLE


def test_a_folder_that_cannot_be_entered_hides_a_limit(tmp_path, monkeypatch):
    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(machine.Path, "read_text", refuse)
    assert machine.left(tmp_path, "memory.max", "memory.current") == machine.UNREADABLE


@pytest.fixture
def ends(project, monkeypatch, capsys):
    """Runs a script in this process as a command: (exit status, what it said on stderr)."""
    monkeypatch.setattr(commands, "on_interrupt", lambda handler: None)  # this process goes on

    def run(script, *flags):
        module = importlib.import_module(script)
        more = {"several": True} if script == "pretrain" else {}
        assert f"run(main, get_args{', several=True' if more else ''})" in inspect.getsource(module)
        try:
            commands.run(module.main, lambda: module.get_args(list(map(str, flags))), **more)
        except SystemExit as end:
            return end.code, capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


SCRIPTS = (
    ("embedding", "-d", "a"),
    ("classifier", "-d", "a"),
    ("classifier", "-d", "a", "-mv", "v2"),
    ("cross_dataset_test", "-d", "a", "-td", "b"),
    ("experiments.baselines", "-d", "a", "-td", "b"),
    ("reproduce", "--table"),
    ("dataset.prepare", "-d", "uci"),
    ("predict", "--raw", "x", "--recordings", "y"),
)


@pytest.mark.parametrize(
    "variables",
    [
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "2", "RANK": "1"},
        {"RANK": "3"},
        {"WORLD_SIZE": "two"},
        {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"},
    ],
)
def test_a_launchers_variables_without_a_launcher_are_one_line(ends, project, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    before = project.files()
    for script in (("pretrain", "-d", "a"), *SCRIPTS):
        status, err = ends(*script)
        assert status == 2 and err.count("\n") == 1 and "WORLD_SIZE or RANK is set in the environment" in err
    assert project.files() == before


def test_a_launchers_variables_of_one_process_are_none(ends, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1"), monkeypatch.setenv("RANK", "0")
    assert ends("pretrain", "-d", "a", "-g", "cpu", "--quiet") == (0, "")
    assert (commands.process_number(), commands.process_count()) == (0, 1)


@pytest.fixture
def launched(monkeypatch):
    """The environment of the first of two processes that torchrun starts."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    variables = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "RANK": "0", "LOCAL_RANK": "0"}
    for name, value in (variables | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}).items():
        monkeypatch.setenv(name, value)


def test_torchrun_is_for_pretraining_alone(ends, project, launched):
    before = project.files() | {"config/pretrain_model.json": None}
    for script in SCRIPTS:
        status, err = ends(*script)
        assert status == 2 and err.count("\n") == 1 and "torchrun is for pretrain.py" in err
    project.config("pretrain_model", base_v2={"method": "v2"})
    status, err = ends("pretrain", "-d", "a", "-mv", "v2")
    assert status == 2 and "learns from labels alone" in err
    assert project.files() | {"config/pretrain_model.json": None} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_that_waits_for_its_peers_to_start(project, launched, number):
    said = "import torch.distributed as d, os; f = d.init_process_group\n"
    said += "d.init_process_group = lambda *a, **k: (os.write(1, b'waiting\\n'), f(*a, **k))"
    process = project.start("pretrain.py", "-d", "a", "-g", "cpu", prelude=said)
    assert process.stdout.readline() == "waiting\n"
    time.sleep(0.3)  # into the wait itself
    process.send_signal(number)
    process.communicate(timeout=20)
    assert process.returncode in (-number, 130)


def test_a_signal_ends_a_run_whose_peer_hangs(project, launched):
    """The second process stops for good in its first epoch; the first one is told to end, and keeps its state."""
    project.config("pretrain", n_epochs=4000, n_epochs_cl=10)
    hang = "import os, signal\nfrom bookkeeping import resume as r\noriginal, n = r.Resume.after_epoch, []\n"
    hang += "def after(self, *a, **k):\n original(self, *a, **k); n.append(1)\n"
    hang += (
        " if len(n) == 2: os.write(1, b'two\\n'); os.environ['RANK'] == '1' and os.kill(os.getpid(), signal.SIGSTOP)\n"
    )
    hang += "r.Resume.after_epoch = after"
    flags = ("pretrain.py", "-d", "a", "-g", "cpu", "--quiet")
    first = project.start(*flags, prelude=hang)
    os.environ.update(RANK="1", LOCAL_RANK="1")  # undone by the fixture
    second = project.start(*flags, prelude=hang)
    try:
        assert "two\n" in iter(first.stdout.readline, "")
        time.sleep(0.3)
        first.send_signal(signal.SIGTERM)
        out, err = first.communicate(timeout=20)
    finally:
        first.kill(), second.kill(), second.communicate()
    assert first.returncode == 130 and err.startswith("interrupted"), err
    assert "state kept in saved/" in out


def test_of_several_processes_one_says_that_one_is_meant(project):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*launcher, str(ROOT / "embedding.py"), "-d", "a", "-g", "cpu"]
    before = project.files()
    how = {"env": os.environ | {"OMP_NUM_THREADS": "1"}, "timeout": 60}
    err = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, **how).stderr
    assert [line for line in err.splitlines() if line.startswith("error")] == [
        "error: torchrun is for pretrain.py, whose training several processes can share; leave it out here"
    ]
    assert project.files() == before
