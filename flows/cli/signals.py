"""Signals that ask this process to end: one exception that stops its work, raised again where it was swallowed."""

import signal
import sys
import weakref
from types import FrameType
from typing import NoReturn

from tasks.output.terminal import say

AGAIN_SECONDS = 0.1
"""When an exception that somebody dropped is raised again."""
LATEST_SECONDS = 120.0
"""When one that somebody keeps is: a training process has 60 s to write its checkpoint before."""
SIGNALLED = 128
"""Exit codes above it name a signal."""
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C."""


class Terminated(SystemExit):
    """SIGTERM, or a terminal that was closed."""


class _Ending:
    """The signal that this process ends by, and whether nothing is left to stop."""

    number: int = 0
    left: bool = False


_ending = _Ending()
_on_the_way: "weakref.WeakSet[BaseException]" = weakref.WeakSet()


def exit_when_asked() -> None:
    """Let Ctrl-C, SIGTERM and a closed terminal end this process by an exception, so that it stops what it started.

    An exception that a `__del__` or a library swallows ends nothing: it is raised again, until `leave` is called.
    """
    _ending.number, _ending.left = 0, False
    for number in ENDING:
        # nohup has it ignored, and so it stays.
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            signal.signal(number, _exit)
    signal.signal(signal.SIGALRM, _exit)
    sys.unraisablehook = _unraisable


def leave() -> None:
    """Say that the work has been stopped: nothing is raised again from here on."""
    _ending.left = True
    if _ending.number:
        signal.setitimer(signal.ITIMER_REAL, 0)


def exit_code(end: BaseException) -> int:
    """The exit code of a command that SystemExit or Ctrl-C ended; after a signal a line on stderr says what is kept."""
    code = getattr(end, "code", SIGNALLED + signal.SIGINT)
    if not isinstance(code, int):
        return 1
    if code > SIGNALLED:
        number = signal.Signals(code - SIGNALLED)
        how = "Interrupted" if number == signal.SIGINT else f"Ended by {number.name}"
        say(f"{how}. Finished steps are kept; run the same command again to continue.", stderr=True)
    return code


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    if number != signal.SIGALRM:
        _ending.number = number
    signal.setitimer(signal.ITIMER_REAL, LATEST_SECONDS)
    # Not held by this frame, which the exception's own traceback holds: nothing else may keep it alive.
    raise _stop(_ending.number)


def _stop(number: int) -> BaseException:
    stop = Interrupted() if number == signal.SIGINT else Terminated(SIGNALLED + number)
    _on_the_way.add(stop)
    weakref.finalize(stop, _again).atexit = False
    return stop


def _again() -> None:
    if not (_ending.left or list(_on_the_way)):
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS)


def _unraisable(report: "sys.UnraisableHookArgs") -> None:
    """What a `__del__` or a callback raised: Python prints it and goes on, also where it was the end of the process."""
    # While a flow runs, SIGTERM is Prefect's and raises its TerminationSignal; to import that costs seconds.
    if report.exc_type.__name__ == "TerminationSignal":
        _ending.number = signal.SIGTERM
        _again()
    elif not issubclass(report.exc_type, Interrupted | Terminated):
        sys.__unraisablehook__(report)
