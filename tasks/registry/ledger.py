"""What was decided and moved, for good: entries in, one JSON line each out, in a file that outlives every alias.

The same entry goes to the MLflow run as `decisions/<n>.json`, where it can be read beside the report.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from tasks.errors import StateUnusable
from tasks.store import writable

if TYPE_CHECKING:
    from tasks.registry.tracking import MlflowRun


def append(path: Path, entry: Mapping[str, Any], run: "MlflowRun | None" = None) -> int:
    """Write an entry and return its number, counted from 1; it is on the disk when this returns.

    The number `n` and the time `at` (UTC) are added. `run` is the MlflowRun that gets a copy. Raises StateUnusable,
    and ServiceUnavailable from the copy: the line is kept then.
    """
    with writable(path.parent), _alone(path):
        _cut_torn_line(path)
        number = len(entries(path)) + 1
        line = {"n": number, "at": datetime.now(UTC).isoformat(timespec="seconds"), **entry}
        text = json.dumps(line, ensure_ascii=False)
        with path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    if run is not None:
        from tasks.registry.tracking import connect, service

        with service(run.tracking_uri):
            connect(run.tracking_uri).log_dict(run.run_id, line, f"decisions/{number}.json")
    return number


def entries(path: Path) -> list[dict[str, Any]]:
    """Every entry, oldest first; a last line that a crash cut short is not one.

    Raises StateUnusable with the line for one that is damaged otherwise.
    """
    if not path.exists():
        return []
    *lines, _torn = path.read_bytes().split(b"\n")
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found.append(dict(json.loads(line)))
        except ValueError as fault:
            raise StateUnusable(f"{path}:{number}: damaged ({fault}); restore the ledger from a backup.") from fault
    return found


def _cut_torn_line(path: Path) -> None:
    """An entry without its line's end was never confirmed to anyone."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with FileLock(path.with_name(f"{path.name}.append.lock")):
        yield
