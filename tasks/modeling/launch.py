"""Start the training process and follow its event log: a job in, events out as they come, a summary at the end."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks.errors import OutOfMemory, PermanentError, TrainingDiverged, WorkerDied
from tasks.modeling.events import EVENTS, Follower
from tasks.modeling.job import JOB, TrainingJob
from tasks.modeling.worker import Exit

Listener = Callable[[list[dict[str, Any]]], None]
ATTEMPTS = "attempts.json"
LOG = "worker.log"
LOOK_EVERY_SECONDS = 0.5


def train(job: TrainingJob, listen: Listener, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run a job to its end in a process of its own, or pick up where an interrupted one stopped; the training's
    summary.

    Raises OutOfMemory, TrainingDiverged or WorkerDied for what another try can mend: what was learned (a smaller
    micro-batch, a lower learning rate) is kept in the folder for it. Raises PermanentError for what it cannot.
    """
    summary = job.folder / "summary.json"
    if not summary.exists():
        attempt = _attempt(job.folder)
        job = job.model_copy(update={**attempt, "parent": os.getpid()})
        (job.folder / JOB).write_text(job.model_dump_json(indent=1), "utf-8")
        code = _run(job.folder, listen, environment)
        if code != Exit.done:
            raise _failure(job, code)
    else:
        listen(Follower(job.folder / EVENTS).new())
    return dict(json.loads(summary.read_text("utf-8")))


def _run(folder: Path, listen: Listener, environment: Mapping[str, str] | None) -> int:
    follower = Follower(folder / EVENTS)
    listen(follower.new())
    command = [sys.executable, "-m", "tasks.modeling.worker", str(folder / JOB)]
    root = str(Path(__file__).parents[2])
    paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    variables = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1", **(environment or {})}
    with (folder / LOG).open("ab") as output:
        worker = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=variables)
        try:
            while worker.poll() is None:
                listen(follower.new())
                time.sleep(LOOK_EVERY_SECONDS)
        except BaseException:
            # Also Prefect's TerminationSignal, which is no Exception: the worker writes a checkpoint and ends.
            worker.terminate()
            worker.wait(60)
            raise
        listen(follower.new())
    return worker.returncode


def _attempt(folder: Path) -> dict[str, Any]:
    path = folder / ATTEMPTS
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def _failure(job: TrainingJob, code: int) -> Exception:
    """The error for an exit code; what the next try should do differently is written down first."""
    tail = "\n".join((job.folder / LOG).read_text("utf-8", errors="replace").splitlines()[-12:])
    attempt = {"micro_batch_divisor": job.micro_batch_divisor, "learning_rate_scale": job.learning_rate_scale}
    if code == Exit.out_of_memory:
        attempt["micro_batch_divisor"] *= 2
        error: Exception = OutOfMemory(
            f"training ran out of memory with packs of {job.recipe.batch_tokens // job.micro_batch_divisor} tokens; "
            "the next try halves them and keeps the examples of each step."
        )
    elif code == Exit.diverged:
        attempt["learning_rate_scale"] /= 2
        error = TrainingDiverged(
            f"the loss is no longer a number; the next try starts from the last good checkpoint at "
            f"{attempt['learning_rate_scale']:g} of the learning rate."
        )
    elif code == Exit.interrupted or code < 0:
        how = "was asked to end" if code == Exit.interrupted else f"was killed by signal {-code}"
        error = WorkerDied(
            f"the training process {how}; the next try goes on from its last checkpoint ({job.folder / 'checkpoints'})."
        )
    else:
        error = PermanentError(
            f"the training process failed (exit code {code}); the end of {job.folder / LOG}:\n{tail}"
        )
    (job.folder / ATTEMPTS).write_text(json.dumps(attempt), "utf-8")
    return error
