"""What was decided and moved, for good: entries in, one JSON line each out, in a file that outlives every alias.

The same entry goes to the MLflow run as `decisions/<n>.json`, where it can be read beside the report.
"""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import StateUnusable
from tasks.files.locks import locked
from tasks.output.credentials import without_credentials
from tasks.steps.scratch import scratch_folder
from tasks.steps.store import writable

if TYPE_CHECKING:
    from tasks.registry.runs import MlflowRun

APPEND_SECONDS = 60.0
LAST_WORDS = ("decision", "rollback")
IDENTITY = ("kind", "registry", "name", "version", "promote", "target", "champion", "basis", "forced")


def append(path: Path, entry: Mapping[str, Any], run: "MlflowRun | None" = None) -> int:
    """Write an entry and return its number, counted from 1; it is on the disk when this returns.

    The number `n` and the time `at` (UTC) are added. `run` is the MlflowRun that gets a copy. Raises StateUnusable,
    and ServiceUnavailable from the copy: the line is kept then.
    """
    with (
        writable(path.parent),
        locked(path.with_name(f"{path.name}.append.lock"), APPEND_SECONDS, "writing the ledger"),
    ):
        _cut_torn_line(path)
        number = len(entries(path)) + 1
        line = {"n": number, "at": datetime.now(UTC).isoformat(timespec="seconds"), **entry}
        text = json.dumps(line, ensure_ascii=False)
        with path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(text + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    _copy(line, run)
    return number


def decide_once(path: Path, decision: Mapping[str, Any], run: "MlflowRun | None" = None) -> int:
    """Write a decision, unless it is the last word on its model already; returns the number of its entry.

    A step that is repeated after a crash decides the same on the same evidence. The copy in MLflow may be what is
    missing, so it is written again. The caller holds the lock of the aliases.
    """
    words = (entry for entry in reversed(entries(path)) if entry.get("name") == decision["name"])
    last = next((entry for entry in words if entry["kind"] in LAST_WORDS), None)
    if last is None or _identity(last) != _identity(decision):
        return append(path, decision, run)
    _copy(last, run)
    return int(last["n"])


def _identity(decision: Mapping[str, Any]) -> list[Any]:
    """What makes two decisions the same: subject, evidence and outcome of each rule, not the words of the reasons."""
    rules = [(check["rule"], check["passed"]) for check in decision.get("reasons", [])]
    return [*(decision.get(key) for key in IDENTITY), rules]


def _copy(line: Mapping[str, Any], run: "MlflowRun | None") -> None:
    if run is None:
        return
    from tasks.registry.client import connect
    from tasks.registry.runs import service

    with service(run.tracking_uri), scratch_folder():
        connect(run.tracking_uri).log_dict(run.run_id, dict(line), f"decisions/{line['n']}.json")


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
            found.append(_parsed(line))
        except (ValueError, RecursionError) as fault:
            raise StateUnusable(
                f"{path}:{number}: damaged ({fault}); restore the ledger from a backup, or take this line out: what it "
                "said is then lost."
            ) from fault
    return found


def _parsed(line: bytes) -> dict[str, Any]:
    """The entry in a line; raises ValueError where it is none."""
    entry = json.loads(line)
    if not isinstance(entry, dict) or type(entry.get("n")) is not int or not isinstance(entry.get("kind"), str):
        raise ValueError("it is no entry: each has a number n and a kind")
    return entry


def is_of(entry: Mapping[str, Any], tracking_uri: str) -> bool:
    """Whether an entry is of this registry; earlier releases wrote addresses with their credentials."""
    return without_credentials(str(entry.get("registry", ""))) == without_credentials(tracking_uri)


def _cut_torn_line(path: Path) -> None:
    """An entry without its line's end was never confirmed to anyone."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
