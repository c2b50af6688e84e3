"""What a worker does besides training: it waits for another of its folder, and says how it ended."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from tasks.errors import OutOfMemory, PermanentError, TrainingDiverged, TunelineError, WorkerDied
from tasks.recipe.stages import ComputeRecipe
from tasks.training import events, launch
from tasks.training.events import EVENTS
from tasks.training.job import JOB, TrainingJob
from tasks.training.loop import Interrupted
from tasks.training.outcome import ATTEMPTS, Attempt
from tasks.training.worker import Exit, how_it_ended

Make = Callable[..., TrainingJob]


@pytest.mark.slow
def test_a_worker_waits_for_an_earlier_one_that_still_writes_its_checkpoint(job: Make) -> None:
    made = job()
    (made.folder / JOB).write_text(made.model_dump_json(), "utf-8")
    with FileLock(made.folder / "worker.lock"):
        worker = subprocess.Popen([sys.executable, "-m", "tasks.training.worker", str(made.folder / JOB)])
        time.sleep(15)
        assert worker.poll() is None
        assert not (made.folder / EVENTS).exists()
    assert worker.wait(120) == Exit.done
    assert (made.folder / "summary.json").exists()


@pytest.mark.parametrize(
    "processes", [1, pytest.param(2, marks=pytest.mark.slow)], ids=["one process", "two processes"]
)
def test_a_failure_that_no_retry_mends_is_told_with_its_reason(job: Make, tmp_path: Path, processes: int) -> None:
    made = job().model_copy(update={"base": tmp_path / "nowhere", "compute": ComputeRecipe(processes=processes)})
    with pytest.raises(PermanentError, match="nowhere"):
        launch.train(made, listen=lambda new: None)
    reported = [event for event in events.read(made.folder / EVENTS) if event["event"] == "failed"]
    assert {event["failure"] for event in reported} == {"failed"}


@pytest.mark.parametrize(
    ("fault", "end"),
    [
        (Interrupted(), Exit.interrupted),
        (TrainingDiverged("step 3: the loss is nan"), Exit.diverged),
        (torch.OutOfMemoryError("CUDA out of memory"), Exit.out_of_memory),
        (MemoryError(), Exit.out_of_memory),
        (torch.distributed.DistBackendError("NCCL error"), Exit.peer_lost),
        (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), Exit.peer_lost),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), Exit.failed),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value.name,
)
def test_an_error_says_how_the_training_ended(fault: Exception, end: Exit) -> None:
    assert how_it_ended(fault) is end


@pytest.mark.parametrize(
    ("code", "reported", "error"),
    [
        (1, "out_of_memory", OutOfMemory),
        (1, "diverged", TrainingDiverged),
        (1, "interrupted", WorkerDied),
        (1, "failed", PermanentError),
        (1, "", WorkerDied),
        (-9, "", WorkerDied),
    ],
)
def test_behind_a_launcher_the_report_of_a_process_decides(
    job: Make, code: int, reported: str, error: type[TunelineError]
) -> None:
    made = job().model_copy(update={"compute": ComputeRecipe(processes=2)})
    (made.folder / launch.LOG).write_text("Traceback", "utf-8")
    ended = launch.Try(code=code, failure=Exit[reported] if reported else None, text="RuntimeError: what was wrong")
    fault = launch._failure(made, ended, Attempt())
    assert type(fault) is error
    halved = json.loads((made.folder / ATTEMPTS).read_text("utf-8"))["micro_batch_divisor"]
    assert halved == (2 if error is OutOfMemory else 1)
