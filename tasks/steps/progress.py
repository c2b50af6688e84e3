"""Long work in, how far, how fast and how long still out: a bar on a terminal, lines in a log."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tasks.output.terminal import console

Advance = Callable[[int], None]
"""Called with how many more units are done."""

LOG_EVERY_SECONDS = 10.0
log = logging.getLogger("tuneline")


def silent(count: int) -> None:
    """An Advance for a caller that does not watch."""


class Meter:
    """Counts units against a total and says so: `meter(3)`; `meter.note` is shown beside the numbers."""

    def __init__(self, what: str, total: int, unit: str, show: Callable[[int, str], None]) -> None:
        self.what, self.total, self.unit, self.note = what, total, unit, ""
        self.done = self.before = 0
        self.started = self.spoke = time.monotonic()
        self._show = show
        self.listeners: list[Callable[[float, str], None]] = []

    def __call__(self, count: int) -> None:
        self.done += count
        self._show(self.done, self.note)
        now = time.monotonic()
        if now - self.spoke >= LOG_EVERY_SECONDS or (self.done >= self.total and now - self.started >= 1):
            self.spoke = now
            log.info(self.line())
            for listen in self.listeners:
                listen(100.0 * self.done / max(self.total, 1), self.line())

    def expect(self, total: int, done: int) -> None:
        """Set the total once it is known, and what was done before this process began."""
        self.total, self.done, self.before = total, done, done
        self.started = time.monotonic()
        self._show(self.done, self.note)

    def line(self) -> str:
        """What, how far, how fast, how long still, in one line."""
        seconds = max(time.monotonic() - self.started, 1e-9)
        rate = (self.done - self.before) / seconds
        left = (self.total - self.done) / rate if rate else float("inf")
        eta = f"{left:,.0f} s left" if self.done < self.total and rate else f"{seconds:,.1f} s"
        note = f", {self.note}" if self.note else ""
        return f"{self.what}: {self.done:,}/{self.total:,} {self.unit}, {rate:,.1f} {self.unit}/s, {eta}{note}"


@contextmanager
def tracked(what: str, total: int, unit: str) -> Iterator[Meter]:
    """A meter for `total` units of work; a bar where stderr is a terminal, log lines everywhere.

    >>> with tracked("count", total=2, unit="rows") as advance:
    ...     advance(1)
    ...     advance(1)
    >>> advance.done
    2
    """
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[unit]}")]
    times = [TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
    with Progress(
        *columns, *times, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty()
    ) as bars:
        task = bars.add_task(what, total=total, unit=unit, note="")
        meter = Meter(
            what, total, unit, lambda done, note: bars.update(task, completed=done, total=meter.total, note=note)
        )
        yield meter
