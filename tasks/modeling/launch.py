"""Start the training process and follow its event log: a job in, events out as they come, a summary at the end."""

import json
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tasks.errors import OutOfMemory, PermanentError, StateUnusable, TrainingDiverged, WorkerDied
from tasks.modeling import processes
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
        variables = {**os.environ, **(environment or {})}
        processes.check(job.compute, job.recipe.method, variables)
        (job.folder / JOB).write_text(job.model_dump_json(indent=1), "utf-8")
        code, reported = _run(job, listen, variables)
        if code != Exit.done:
            raise _failure(job, code, reported)
    else:
        listen(Follower(job.folder / EVENTS).new())
    return dict(json.loads(summary.read_text("utf-8")))


def _run(job: TrainingJob, listen: Listener, variables: Mapping[str, str]) -> tuple[int, dict[str, Any] | None]:
    """Start the training and follow it: the exit code, and the first failure that one of its processes reported."""
    follower = Follower(job.folder / EVENTS)
    listen(follower.new())
    failures: list[dict[str, Any]] = []

    def look() -> None:
        new = follower.new()
        failures.extend(event for event in new if event["event"] == "failed")
        listen(new)

    command, added = processes.command(job.folder / JOB, job.compute, variables)
    with (job.folder / LOG).open("ab") as output:
        worker = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env={**variables, **added})
        try:
            while worker.poll() is None:
                look()
                time.sleep(LOOK_EVERY_SECONDS)
        except BaseException:
            # Also Prefect's TerminationSignal, which is no Exception: the worker writes a checkpoint and ends.
            worker.terminate()
            try:
                worker.wait(60)
            except subprocess.TimeoutExpired:
                worker.kill()
            raise
        look()
    return worker.returncode, failures[0] if failures else None


def _attempt(folder: Path) -> dict[str, Any]:
    path = folder / ATTEMPTS
    return dict(json.loads(path.read_text("utf-8"))) if path.exists() else {}


def _failure(job: TrainingJob, code: int, reported: dict[str, Any] | None = None) -> Exception:
    """The error for a training that ended early; what the next try should do differently is written down first.

    A process's own report goes before the exit code: a launcher has one code for every failure.
    """
    attempt = {"micro_batch_divisor": job.micro_batch_divisor, "learning_rate_scale": job.learning_rate_scale}
    if reported:
        code = Exit[reported["failure"]]
    elif code > 0 and processes.launched(job.compute):
        code = Exit.peer_lost
    if code == Exit.disk_full:
        return StateUnusable(
            f"{job.folder}: the disk is full; free space, or point TUNELINE_HOME elsewhere. The next run goes on from "
            "the last checkpoint."
        )
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
    elif code in (Exit.interrupted, Exit.peer_lost) or code < 0:
        error = WorkerDied(
            f"the training process {_how(code)}; the next try goes on from its last checkpoint "
            f"({job.folder / 'checkpoints'}). Its own words are in {job.folder / LOG}."
        )
    else:
        said = f": {reported['text']}" if reported else f" (exit code {code})"
        error = PermanentError(f"the training process failed{said}; the end of {job.folder / LOG}:\n{_tail(job)}")
    (job.folder / ATTEMPTS).write_text(json.dumps(attempt), "utf-8")
    return error


def _how(code: int) -> str:
    if code == Exit.interrupted:
        return "was asked to end"
    return f"was killed by signal {-code}" if code < 0 else "lost one of its processes, killed or cut off"


def _tail(job: TrainingJob) -> str:
    return "\n".join((job.folder / LOG).read_text("utf-8", errors="replace").splitlines()[-12:])
