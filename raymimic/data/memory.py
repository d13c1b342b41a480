"""Memory of this machine, or of the container that this process runs in."""

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
# Limit, use, and statistics of a container's memory, in both versions of Linux' control groups.
_FILES = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
# Copies of files, which the system gives up when memory is asked for.
_RECLAIMABLE = ("inactive_file", "active_file")


def free_memory() -> int:
    """Bytes that processes here may still take, without swapping."""
    import psutil  # commands that read no data do without it

    free: int = psutil.virtual_memory().available
    return min([free, *(limit - used for limit, used in _container())])


def total_memory() -> int:
    """Bytes that all processes here may take together."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([total, *(limit for limit, _ in _container())])


def workers_here() -> int:
    """How many workers of this training share the machine, as Ray Train (or torchrun) says."""
    stated = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(stated) if stated.isdecimal() else 1


def _container() -> list[tuple[int, int]]:
    """Limit and use of the container's memory; empty where there is no limit."""
    found = []
    for limit_file, use_file, stat_file in _FILES:
        try:
            limit = int((_CGROUPS / limit_file).read_text())
            use = int((_CGROUPS / use_file).read_text())
            lines = (_CGROUPS / stat_file).read_text().split("\n")
            stats = {name: int(value) for name, value in (x.split() for x in lines if x)}
        except (OSError, ValueError):  # "max", or another system
            continue
        found.append((limit, use - sum(stats.get(name, 0) for name in _RECLAIMABLE)))
    return found
