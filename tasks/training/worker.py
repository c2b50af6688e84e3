"""The training process: a job file in, weights and an event log out, and an exit code that says what went wrong.

Started as `python -m tasks.training.worker job.json`, or the same under `accelerate launch`. It speaks to no server.
It ends by itself when the process that started it ends: nothing trains on unseen. What failed is also written to the
event log, since a launcher answers 1 whatever the exit code of its workers was.
"""

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from types import FrameType

from tasks.files.locks import locked
from tasks.training.events import EVENTS, append
from tasks.training.job import TrainingJob

GRACE_SECONDS = 30
WAITING_SECONDS = 600.0
"""How long to wait for an earlier worker, which ends within `GRACE_SECONDS` of the process that started it."""


class Exit(IntEnum):
    """How the worker ended."""

    done = 0
    failed = 1
    diverged = 3
    out_of_memory = 4
    peer_lost = 5
    disk_full = 6
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
    for process in _watched(job):
        stop.watch(process)
    from tasks.training.loop import Training

    try:
        with alone(job.folder):
            Training(job, stop).run()
            leave()
    except Exception as fault:
        end = how_it_ended(fault)
        # All processes stop or diverge at the same step; of the other failures each knows only its own.
        if end is not Exit.peer_lost and (is_first() or end not in (Exit.interrupted, Exit.diverged)):
            # A full disk takes no last words either; the exit code has to do.
            with suppress(OSError):
                append(job.folder / EVENTS, "failed", failure=end.name, text=f"{type(fault).__name__}: {fault}"[:2000])
        if end in (Exit.failed, Exit.peer_lost):
            raise
        return end
    return Exit.done


def leave() -> None:
    """Take leave of the other processes: threads of gloo that still run at the end would abort this one."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def is_first() -> bool:
    """Whether this is the only process of its training, or the first."""
    return os.environ.get("RANK", "0") == "0"


def _watched(job: TrainingJob) -> list[int]:
    """The processes without which this one ends: the step's where it is on this machine, and the launcher."""
    launcher = [os.getppid()] if "TORCHELASTIC_RUN_ID" in os.environ else []
    verb = [job.parent] if job.parent and os.environ.get("GROUP_RANK", "0") == "0" else []
    return verb + launcher


def how_it_ended(fault: Exception) -> Exit:
    """The way of ending that an error stands for.

    >>> how_it_ended(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    <Exit.out_of_memory: 4>
    """
    import torch

    from tasks.errors import TrainingDiverged
    from tasks.training.loop import Interrupted

    if isinstance(fault, Interrupted):
        return Exit.interrupted
    if isinstance(fault, TrainingDiverged):
        return Exit.diverged
    if isinstance(fault, torch.OutOfMemoryError | MemoryError | RuntimeError) and is_out_of_memory(fault):
        return Exit.out_of_memory
    if is_disk_full(fault):
        return Exit.disk_full
    if isinstance(fault, torch.distributed.DistError) or (isinstance(fault, RuntimeError) and "gloo" in str(fault)):
        # Another process went away; why is known there.
        return Exit.peer_lost
    return Exit.failed


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait for an earlier worker of this folder: one whose parent was killed may still be writing its checkpoint.

    Of several processes of one training, the first waits for all: the others cannot start without it.
    """
    if not is_first():
        yield
        return
    with locked(folder / "worker.lock", WAITING_SECONDS, "training in this folder"):
        yield


def is_disk_full(fault: BaseException) -> bool:
    """Whether an error says that a file could not be written for want of room; torch and safetensors have own words.

    >>> is_disk_full(OSError(errno.ENOSPC, "No space left on device"))
    True
    >>> is_disk_full(RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed"))
    True
    """
    text = str(fault).lower()
    full = isinstance(fault, OSError) and fault.errno in (errno.ENOSPC, errno.EDQUOT)
    return full or "no space left" in text or "failed writing file" in text


def is_out_of_memory(fault: BaseException) -> bool:
    """Whether an error says that memory was refused, on a GPU or by the operating system.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"))
    True
    """
    text = str(fault).lower()
    return isinstance(fault, MemoryError) or "out of memory" in text or "can't allocate memory" in text


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
