"""The event log of a training: points in, one JSON line each out; written by the worker, followed by the verb.

The log is the only thing that passes from the worker to the rest. It survives both, and may be replayed: each point
keeps the time at which it was measured. A line that cannot be read counts as not there.
"""

import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.files.durable import write_text

EVENTS = "events.jsonl"
NUMBERS = {
    "start": ("from_step", "steps", "trainable_parameters", "parameters"),
    "step": ("step", "loss", "learning_rate", "grad_norm", "tokens_per_second"),
    "validation": ("step", "loss", "best_step"),
    "checkpoint": ("step",),
    "diverged": ("step", "from_step", "taken"),
}
"""What each kind of event has to hold besides its time; further kinds and fields may come."""
OF_A_STEP = ("step", "validation", "checkpoint")
log = logging.getLogger("tuneline")


class EventLog:
    """Appends events, each at once on disk; a step that is already in the log is not written a second time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: set[tuple[str, Any]] = set()

    def start(self, from_step: int, attempt: dict[str, float], warnings: Sequence[str] = (), **fields: Any) -> None:
        """Begin a try at a step: lines that cannot be read go, and what this try will take otherwise than the last.

        A try of the same attempt takes the same steps as the one before, whose points stay. With another learning rate
        or micro-batch, what lies beyond `from_step` belongs to a try that failed: `retakes_until` is its last step.
        """
        events = list(read(self.path))
        last = next((event for event in reversed(events) if event["event"] == "start"), None)
        changed = last is not None and last.get("attempt", attempt) != attempt
        beyond = [event for event in events if changed and event["event"] in OF_A_STEP and event["step"] > from_step]
        dropped = set(map(id, beyond))
        kept = [event for event in events if id(event) not in dropped]
        self.seen = {(event["event"], event.get("step")) for event in kept}
        missing = [step for step in range(1, from_step + 1) if ("step", step) not in self.seen]
        lacking = [f"{self.path}: it lost {_ranges(missing)}, which the curve lacks from now on"] if missing else []
        line = {
            "event": "start",
            "time": time.time(),
            "from_step": from_step,
            "attempt": attempt,
            "retakes_until": max((event["step"] for event in beyond), default=0),
            "warnings": [*warnings, *lacking],
            **fields,
        }
        write_text(self.path, "".join(json.dumps(event) + "\n" for event in [*kept, line]))

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


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole event of a log, oldest first."""
    follower = Follower(path)
    return iter(follower.new())


class Follower:
    """Reads a log that grows: `new()` gives the whole lines since the last call."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._offset = self._lines = 0

    def new(self) -> list[dict[str, Any]]:
        """Events since the last call; a line still being written waits for the next.

        A worker writes the log anew when it starts: what comes before its start event was given before.
        """
        if not self.path.exists():
            return []
        with self.path.open("rb") as stream:
            file = os.fstat(stream.fileno()).st_ino
            anew = self._file not in (None, file)
            if anew:
                self._offset = self._lines = 0
            self._file = file
            stream.seek(self._offset)
            content = stream.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        events = list(self._parsed(whole.splitlines()))
        starts = [number for number, event in enumerate(events) if event["event"] == "start"]
        return events[starts[-1] :] if anew and starts else events

    def _parsed(self, lines: Sequence[bytes]) -> Iterator[dict[str, Any]]:
        for line in lines:
            self._lines += 1
            event = parsed(line)
            if event is None:
                log.warning("%s:%s: this line cannot be read and counts as not there", self.path, self._lines)
            else:
                yield event


def parsed(line: bytes) -> dict[str, Any] | None:
    """The event in a line; None where it is no event, or lacks what its kind has to hold.

    >>> parsed(b'{"event": "checkpoint", "time": 1.5, "step": 3}')
    {'event': 'checkpoint', 'time': 1.5, 'step': 3}
    >>> parsed(b'{"event": "checkpoint", "time": 1.5}') is parsed(b'{"event": "chec') is None
    True
    """
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    wanted = ("time", *NUMBERS.get(event["event"], ()))
    return event if all(isinstance(event.get(name), int | float) for name in wanted) else None


def _ranges(steps: Sequence[int]) -> str:
    """Steps in words.

    >>> _ranges([1, 2, 3, 7]), _ranges([4])
    ('steps 1 to 3 and 7', 'step 4')
    """
    parts: list[list[int]] = []
    for step in steps:
        if parts and step == parts[-1][-1] + 1:
            parts[-1].append(step)
        else:
            parts.append([step])
    words = [f"{part[0]} to {part[-1]}" if len(part) > 1 else str(part[0]) for part in parts]
    return f"step{'s' * (len(steps) > 1)} {' and '.join(words)}"
