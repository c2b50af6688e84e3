"""The training process: a job file in, weights and an event log out, and an exit code that says what went wrong.

Started as `python -m tasks.modeling.worker job.json`, or the same under `accelerate launch`. It speaks to no server.
It ends by itself when the process that started it ends: nothing trains on unseen.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from types import FrameType

from tasks.modeling.events import EVENTS, EventLog
from tasks.modeling.job import TrainingJob

GRACE_SECONDS = 30


class Exit(IntEnum):
    """How the worker ended."""

    done = 0
    failed = 1
    diverged = 3
    out_of_memory = 4
    interrupted = 75


class StopRequest:
    """Set by SIGTERM, SIGINT, or the end of the watched parent; asked after each step."""

    def __init__(self) -> None:
        self._event = threading.Event()
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._event.set()

    def __call__(self) -> bool:
        return self._event.is_set()

    def watch(self, parent: int) -> None:
        """Ask for the end when process `parent` is gone; end hard when the step under way takes too long."""
        threading.Thread(target=self._watch, args=(parent,), daemon=True).start()

    def _watch(self, parent: int) -> None:
        import psutil

        try:
            process = psutil.Process(parent)
            while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
                time.sleep(1)
        except psutil.NoSuchProcess:
            # Gone between two looks: the same as ended.
            self._event.set()
        self._event.set()
        time.sleep(GRACE_SECONDS)
        os._exit(Exit.interrupted)


def main(path: Path) -> Exit:
    """Run one job; what failed is also written to the event log."""
    job = TrainingJob.model_validate_json(path.read_text("utf-8"))
    stop = StopRequest()
    if job.parent:
        stop.watch(job.parent)
    import torch

    from tasks.errors import TrainingDiverged
    from tasks.modeling.training import Interrupted, Training

    try:
        with alone(job.folder):
            Training(job, stop).run()
    except Interrupted:
        return Exit.interrupted
    except TrainingDiverged as fault:
        _report(job, "diverged", fault)
        return Exit.diverged
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as fault:
        if not is_out_of_memory(fault):
            raise
        _report(job, "out_of_memory", fault)
        return Exit.out_of_memory
    return Exit.done


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait for an earlier worker of this folder: one whose parent was killed may still be writing its checkpoint.

    Of several processes of one training, the first waits for all: the others cannot start without it.
    """
    if int(os.environ.get("RANK", "0")):
        yield
        return
    from filelock import FileLock

    with FileLock(folder / "worker.lock"):
        yield


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether an error says that memory was refused, on a GPU or by the operating system.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    True
    """
    text = str(fault).lower()
    return isinstance(fault, MemoryError) or "out of memory" in text or "can't allocate memory" in text


def _report(job: TrainingJob, failure: str, fault: BaseException) -> None:
    EventLog(job.folder / EVENTS).write("failed", failure=failure, text=str(fault)[:2000])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
