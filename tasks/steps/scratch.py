"""Folders for what is needed for a moment, under the state folder: gone when done, and after a kill with the next."""

import os
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.files.locks import locked
from tasks.steps.state import state
from tasks.steps.store import writable

SWEEPING_SECONDS = 600.0
_in_use = threading.RLock()


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A new folder of this process, which every library takes for the temporary folder meanwhile.

    MLflow copies whole models into the temporary folder, and a killed process leaves them there. Here the next
    process deletes them. Raises StateUnusable where the state folder cannot be written.
    """
    root = state().scratch
    with writable(root), _in_use:
        with locked(root / ".lock", SWEEPING_SECONDS, "deleting what killed processes left"):
            _sweep(root)
            folder = Path(tempfile.mkdtemp(dir=root, prefix=f"{os.getpid()}-"))
            owner = FileLock(_lock_of(folder), mode=0o600)
            owner.acquire()
        usual = tempfile.tempdir
        tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = usual
            shutil.rmtree(folder, ignore_errors=True)
            _lock_of(folder).unlink(missing_ok=True)
            owner.release()


def _lock_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.lock")


def _sweep(root: Path) -> None:
    """Delete the folders whose lock nobody holds, and the locks of folders that are gone."""
    left = {path.with_suffix("") if path.suffix == ".lock" else path for path in root.iterdir()}
    for folder in left - {root / ".lock"}:
        lock = FileLock(_lock_of(folder), mode=0o600)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        shutil.rmtree(folder, ignore_errors=True)
        _lock_of(folder).unlink(missing_ok=True)
        lock.release()
