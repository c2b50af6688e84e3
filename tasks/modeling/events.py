"""The event log of a training: points in, one JSON line each out; written by the worker, followed by the verb.

The log is the only thing that passes from the worker to the rest. It survives both, and may be replayed: each point
keeps the time at which it was measured.
"""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

EVENTS = "events.jsonl"


class EventLog:
    """Appends events, each at once on disk; a step that is already in the log is not written a second time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        _drop_torn_line(path)
        self.seen = {(event["event"], event.get("step")) for event in read(path)}

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; a step or validation already logged before a crash is skipped: it is the same point."""
        if event in ("step", "validation") and (event, fields.get("step")) in self.seen:
            return
        append(self.path, event, **fields)


def append(path: Path, event: str, **fields: Any) -> None:
    """Append one event as it is: for a process beside the one that keeps the log."""
    line = json.dumps({"event": event, "time": time.time(), **fields})
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _drop_torn_line(path: Path) -> None:
    """Cut what a killed writer left behind the last whole line."""
    if path.exists() and (content := path.read_bytes()) and not content.endswith(b"\n"):
        path.write_bytes(content[: content.rfind(b"\n") + 1])


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole event of a log, oldest first."""
    follower = Follower(path)
    return iter(follower.new())


class Follower:
    """Reads a log that grows: `new()` gives the whole lines since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        """Events appended since the last call; a line still being written waits for the next."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as stream:
            stream.seek(self._offset)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [json.loads(line) for line in whole.splitlines()]
