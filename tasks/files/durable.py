"""Small records on disk: written whole and synced; what a crash or a foreign hand left there counts as not there."""

import logging
import os
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tasks.files.locks import locked

Record = TypeVar("Record", bound=BaseModel)
WRITING_SECONDS = 60.0
log = logging.getLogger("tuneline")


def write_text(path: Path, text: str) -> None:
    """Write a file so that a crash leaves the old content or the new one, and nothing else."""
    temporary = path.with_name(f".{path.name}.new")
    with locked(path.with_name(f".{path.name}.lock"), WRITING_SECONDS, "writing this file"):
        try:
            # A file name that is not UTF-8 comes with halves of surrogate pairs: JSON's own escapes stand for them.
            with temporary.open("w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Put a folder's entries on the disk: what was renamed or made in it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Put every file below a folder on the disk, then the folders."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        elif path.is_dir():
            sync_folder(path)
    sync_folder(folder)


def read(path: Path, kind: type[Record]) -> Record | None:
    """The record in a JSON file; None where there is none, and with a warning where it cannot be read."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValidationError) as fault:
        log.warning("%s: cannot be read and counts as not there (%s)", path, _reason(fault))
        return None


def _reason(fault: OSError | ValidationError) -> str:
    if isinstance(fault, OSError):
        return fault.strerror or type(fault).__name__
    first = fault.errors(include_url=False, include_input=False)[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
