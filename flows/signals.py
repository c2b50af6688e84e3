"""A request to end in, an exit as any other out: by default the process were gone at once, and what it started not."""

import signal
import sys
from types import FrameType
from typing import NoReturn


def exit_when_asked() -> None:
    """Let SIGTERM and a closed terminal end this process by an exit, so that Prefect's temporary server ends too."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup has it ignored, and so it stays.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit)


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)
