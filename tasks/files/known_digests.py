"""sha256 of files: read in full once, and not again while size, times and inode stay the same on the same machine.

What one process has read it knows until it ends; a note on the disk hands that on to the next process. A file that was
read before on another machine is read again.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

SETTLED_NS = 50_000_000
"""A file that changed less than this ago may change again within the same tick of the file system's clock."""


class Stamp(NamedTuple):
    """What changes when a file's bytes change; the change time cannot be set back, as the modification time can."""

    size: int
    modified_ns: int
    changed_ns: int
    inode: int

    @classmethod
    def of(cls, status: os.stat_result) -> "Stamp":
        """The stamp of a file's status."""
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)

    @property
    def settled(self) -> bool:
        """Whether the last change is long enough ago for any later one to give another stamp."""
        return max(self.modified_ns, self.changed_ns) < time.time_ns() - SETTLED_NS


_known: dict[Path, tuple[Stamp, str]] = {}


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_digest(path: Path, again: bool = False) -> str:
    """sha256 of a file's bytes, read where its stamp is new, or `again`; about half a second a gigabyte."""
    stamp = Stamp.of(path.stat())
    known_stamp, known = _known.get(path, (None, ""))
    if known_stamp == stamp and not again:
        return known
    content = file_digest(path)
    if stamp.settled:
        _known[path] = stamp, content
    else:
        _known.pop(path, None)
    return content


@contextmanager
def remembered(note: Path, folder: Path) -> Iterator[None]:
    """Take over what a note says of a folder's files, and write down what `known_digest` has read of them since.

    A note that cannot be read or written costs time and nothing else.
    """
    noted = _noted(note)
    _known.update({folder / name: entry for name, entry in noted.items()})
    try:
        yield
    finally:
        now = {
            path.relative_to(folder).as_posix(): entry
            for path, entry in list(_known.items())
            if path.is_relative_to(folder)
        }
        if now != noted:
            _write(note, now)


def _noted(note: Path) -> dict[str, tuple[Stamp, str]]:
    try:
        content = json.loads(note.read_text("utf-8"))
        # A note that rots on the disk must not speak against files that are whole.
        if content["machine"] != platform.node() or content["digest"] != _own_digest(content["files"]):
            return {}
        return {name: (Stamp(*map(int, stamp)), str(known)) for name, (stamp, known) in content["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def _write(note: Path, files: dict[str, tuple[Stamp, str]]) -> None:
    temporary = note.with_name(f".{note.name}.{os.getpid()}.new")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": platform.node(), "digest": _own_digest(files), "files": files}
        temporary.write_text(json.dumps(content), "utf-8")
        temporary.replace(note)
    except OSError:
        with suppress(OSError):
            temporary.unlink()


def _own_digest(files: Any) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
