"""What a command says while it works: log records in, lines on the terminal and in a file of the state folder out."""

import logging
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from tasks.settings import State
from tasks.store import writable

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


@contextmanager
def logged(state: State, command: str) -> Iterator[Path]:
    """Log `tuneline` at INFO to stderr and to `<state>/logs/<command>-<time>.log`, whose path is given.

    Warnings of Python and of libraries go to the file only; errors go to both.
    Raises StateUnusable where the state folder cannot be written.
    """
    path = state.logs / f"{command}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    with writable(state.root):
        path.parent.mkdir(parents=True, exist_ok=True)
        in_file: logging.Handler = logging.FileHandler(path, encoding="utf-8")
    in_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s"))
    on_terminal = _Terminal()
    on_terminal.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    quiet()
    log.setLevel(logging.INFO)
    log.propagate = False
    loggers = {log: [in_file, on_terminal], logging.getLogger(): [in_file]}
    for logger, handlers in loggers.items():
        for handler in handlers:
            logger.addHandler(handler)
    try:
        yield path
    finally:
        for logger, handlers in loggers.items():
            for handler in handlers:
                logger.removeHandler(handler)
        log.propagate = True
        in_file.close()


def quiet() -> None:
    """Keep libraries from talking over the command; their warnings and errors still reach the log file."""
    logging.captureWarnings(True)
    warnings.simplefilter("default")
    logging.getLogger("py.warnings").propagate = True
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
