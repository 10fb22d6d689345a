"""Memory that is left, on made-up folders of the system's; torchrun's variables without torchrun."""

import pytest

from bookkeeping import commands, machine
from bookkeeping.commands import UserError

GB = 10**9


@pytest.fixture
def system(tmp_path):
    """Writes files {path: text} below a folder with 16 GB available; returns what is left by them."""
    (tmp_path / "proc/self").mkdir(parents=True)
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
        ("0::/\n", {"memory.max": "much\n", "memory.current": "0"}, 2),
        ("0::/\n", {"memory.max": f"{GB}", "memory.current": f"{2 * GB}"}, 0),
        ("no colons", {}, 16),
    ],
)
def test_the_tightest_limit_counts(system, cgroup, files, wanted):
    assert system(cgroup, files) == pytest.approx(wanted * GB, rel=1e-6)


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
def test_a_launchers_variables_without_a_launcher_are_one_line(project, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for script, flags in (("pretrain", []), ("embedding", []), ("classifier", ["-mv", "v2"])):
        with pytest.raises(UserError, match="WORLD_SIZE or RANK is set"):
            project.run(script, "-d", "a", *flags)
    assert not (project.folder / "saved").exists()


def test_a_launchers_variables_of_one_process_are_none(project, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1"), monkeypatch.setenv("RANK", "0")
    project.run("pretrain", "-d", "a")
    assert (commands.process_number(), commands.process_count()) == (0, 1)


def test_torchrun_is_for_pretraining_alone(trained, monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "2")
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    before = trained.files()
    for script, *flags in (
        ("embedding",),
        ("classifier", "-lr", 0.5),
        ("cross_dataset_test", "-td", "b"),
        ("experiments.baselines", "-td", "b"),
    ):
        with pytest.raises(UserError, match="torchrun is for pretrain.py"):
            trained.run(script, "-d", "a", *flags)
    assert trained.files() == before
