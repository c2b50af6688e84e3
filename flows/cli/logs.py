"""What a command says while it works: log records in, lines on the terminal and in a file of the state folder out."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TextIO

from tasks.output.terminal import SafeFormatter, say
from tasks.steps.state import State
from tasks.steps.store import writable

log = logging.getLogger("tuneline")
_NOISY = (
    "alembic",
    "httpx",
    "httpcore",
    "huggingface_hub",
    "urllib3",
    "filelock",
    "fsspec",
    "mlflow.store",
    "datasets",
)


class _Terminal(logging.StreamHandler[TextIO]):
    """Writes to whatever stderr is now: a live progress bar replaces it to keep lines above the bar."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


class _LogFile(logging.FileHandler):
    """A log file on a disk that may fill up: that is said once, and never in the place of what the command says."""

    said = False

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        fault = sys.exc_info()[1]
        if not isinstance(fault, OSError):
            super().handleError(record)
        elif not self.said:
            self.said = True
            with suppress(OSError):
                say(f"{self.baseFilename}: lines are missing from here on: {fault.strerror}", stderr=True)

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def logged(state: State, command: str) -> Iterator[Path]:
    """Log `tuneline` at INFO to stderr and to `<state>/logs/<command>-<time>.log`, whose path is given.

    Warnings of Python and what libraries say go to the file only; errors go to both. Import Prefect before: its own
    set-up takes the handlers of the root logger away.
    Raises StateUnusable where the state folder cannot be written.
    """
    path = state.logs / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    with writable(state.root):
        path.parent.mkdir(parents=True, exist_ok=True)
        in_file: logging.Handler = _LogFile(path, encoding="utf-8")
    in_file.setFormatter(SafeFormatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    on_terminal, errors = _Terminal(), _Terminal()
    for handler in (on_terminal, errors):
        handler.setFormatter(SafeFormatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    # Prefect reports a failed flow with a long traceback; the command says the same in a panel, the file has both.
    errors.addFilter(lambda record: record.levelno >= logging.ERROR and not record.name.startswith("prefect"))
    log.setLevel(logging.INFO)
    ours = _handlers(log, [*log.handlers, in_file, on_terminal], propagate=False)
    with closing(in_file), ours, _handlers(logging.getLogger(), [in_file, errors], propagate=True), _quiet():
        yield path


@contextmanager
def _handlers(logger: logging.Logger, handlers: list[logging.Handler], propagate: bool) -> Iterator[None]:
    """A logger with these handlers only, for a while."""
    before = logger.handlers, logger.propagate
    logger.handlers, logger.propagate = handlers, propagate
    try:
        yield
    finally:
        logger.handlers, logger.propagate = before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep libraries from talking over the command; their warnings and errors still reach the log file."""
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        logging.captureWarnings(True)
        try:
            yield
        finally:
            logging.captureWarnings(False)
