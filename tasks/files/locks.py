"""Lock files: one process at a time, never waited for without end, none left behind."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.errors import StateUnusable

DAY = 24 * 3600.0


@contextmanager
def locked(path: Path, seconds: float, what: str) -> Iterator[None]:
    """Hold the lock file `path`; the kernel frees it when the process dies, however it dies.

    `what` says what its holder does. Raises StateUnusable, which names the file, after waiting `seconds` in vain.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path, timeout=seconds, mode=0o600)
    try:
        lock.acquire()
    except Timeout:
        raise StateUnusable(
            f"{path}: another process has been {what} for {_duration(seconds)}; end that process first. The lock goes "
            "with it, the file need not be deleted."
        ) from None
    try:
        yield
    finally:
        # Deleted while it is held: whoever waits for this file notices that it is gone, and takes a new one.
        with suppress(OSError):
            path.unlink()
        lock.release()


def _duration(seconds: float) -> str:
    """A length of time in words.

    >>> _duration(86400), _duration(600), _duration(0.5)
    ('24 hours', '10 minutes', '0.5 seconds')
    """
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} seconds"
