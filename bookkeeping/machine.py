"""What the machine leaves a run: memory, by the system's word, the container's limits and the shell's (ulimit -v)."""

import contextlib
import resource
from pathlib import Path

UNREADABLE = 2 * 10**9  # bytes that a limit stands for whose file is there and can't be read


def available_memory(proc="/proc", cgroups="/sys/fs/cgroup"):
    """Bytes that this process may still take: what the system has available, or less where a limit says so.

    Limits of control groups of version 1 and 2, nested ones too, and of the address space: the tightest counts.
    """
    amounts = [left(folder, *names) for folder, names in groups(Path(proc), Path(cgroups))]
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = (Path(proc) / "meminfo").read_text().splitlines()
        amounts.append(next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")))
    amounts.append(address_space(Path(proc)))
    return max(0, min((room for room in amounts if room is not None), default=UNREADABLE))


def address_space(proc):
    """What `ulimit -v` leaves; None without such a limit."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY:
        return None
    try:
        return most - int((proc / "self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return UNREADABLE


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
    try:
        most = (folder / limit).read_text().strip()
        return None if most == "max" else int(most) - int((folder / usage).read_text())
    except (FileNotFoundError, NotADirectoryError):
        return UNREADABLE if (folder / limit).is_file() else None  # the usage's may be what is missing
    except (OSError, ValueError):
        return UNREADABLE
