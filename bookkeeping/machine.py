"""What the machine leaves a run: memory, by the system's word and by the limits of the container it runs in."""

import contextlib
from pathlib import Path

UNREADABLE = 2 * 10**9  # bytes that a limit stands for whose file is there and can't be read


def available_memory(proc="/proc", cgroups="/sys/fs/cgroup"):
    """Bytes that this process may still take: what the system has available, or less where a control group says so.

    Control groups of version 1 and 2, nested ones too: the tightest counts.
    """
    amounts = [
        room for folder, names in groups(Path(proc), Path(cgroups)) if (room := left(folder, *names)) is not None
    ]
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = (Path(proc) / "meminfo").read_text().splitlines()
        amounts.append(next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    return max(0, min(amounts, default=UNREADABLE))


def groups(proc, cgroups):
    """Yield (folder, names of its limit and usage) of each memory group of this process, from its own to the root."""
    version2, version1 = ("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes")
    places = [(cgroups, "/", version2), (cgroups / "memory", "/", version1)]
    with contextlib.suppress(OSError, ValueError):
        for line in (proc / "self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if number == "0" and not controllers:
                places.append((cgroups, path, version2))
            elif "memory" in controllers.split(","):
                places.append((cgroups / "memory", path, version1))
    for root, path, names in places:
        folder = root / path.lstrip("/")
        while True:
            yield folder, names
            if folder == root or root not in folder.parents:
                break
            folder = folder.parent


def left(folder, limit, usage):
    """What a group leaves of its limit; None where there is none, UNREADABLE where its file can't be read."""
    if not (folder / limit).exists():
        return None
    try:
        most = (folder / limit).read_text().strip()
        return None if most == "max" else int(most) - int((folder / usage).read_text())
    except (OSError, ValueError):
        return UNREADABLE
