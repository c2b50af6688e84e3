"""How much main memory this process can still have, and a watch that stops work before it ends."""

import resource
from pathlib import Path

RESERVE = 128 << 20
"""Bytes that stay free: below, an allocation inside a library may end the process without a message."""
KEPT = 50
LOOK_EVERY = 256 << 10
"""Characters of work between two looks; a character of a prompt takes some 100 bytes in the search for duplicates."""
EACH = 100
"""Characters that a row counts for, however little it says."""
_GROUP = Path("/sys/fs/cgroup")


def free_main_memory() -> int:
    """Bytes that this process can still have: of the machine, within its container's limit and its own.

    A fiftieth of the machine and of the container is left to others and to the kernel, which ends processes before.
    """
    import psutil

    machine = psutil.virtual_memory()
    free = [int(machine.available - machine.total // KEPT), *_left_in_group(_GROUP)]
    address_space = resource.getrlimit(resource.RLIMIT_AS)[0]
    if address_space != resource.RLIM_INFINITY:
        free.append(address_space - int(psutil.Process().memory_info().vms))
    return max(0, min(free))


def _left_in_group(group: Path) -> list[int]:
    """What a container's limit leaves, in a list of one; files that the kernel holds in memory give way."""
    try:
        limit, used = ((group / name).read_text("utf-8").strip() for name in ("memory.max", "memory.current"))
        pages = dict(line.split() for line in (group / "memory.stat").read_text("utf-8").splitlines())
        held = int(pages.get("inactive_file", 0)) + int(pages.get("active_file", 0))
        return [] if limit == "max" else [int(limit) - int(used) + held - int(limit) // KEPT]
    except (OSError, ValueError):
        return []


class MemoryWatch:
    """Counts characters of work and raises MemoryError while there is still memory to say so."""

    def __init__(self) -> None:
        self._since = 0

    def __call__(self, characters: int) -> None:
        """Count one row or text; looks at the free memory once in LOOK_EVERY characters."""
        self._since += characters + EACH
        if self._since < LOOK_EVERY:
            return
        self._since = 0
        if free_main_memory() < RESERVE:
            raise MemoryError(f"less than {RESERVE >> 20} MB of memory are left")


def gigabytes(size: float) -> str:
    """Bytes as people say them.

    >>> gigabytes(3 << 29), gigabytes(5 << 20)
    ('1.5 GB', '5 MB')
    """
    return f"{size / (1 << 30):.1f} GB" if size >= 1 << 30 else f"{max(round(size / (1 << 20)), 1)} MB"
