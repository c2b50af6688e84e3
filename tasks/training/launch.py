"""Start the training process and follow its event log: a job in, events out as they come, a summary at the end."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.errors import OutOfMemory, PermanentError, StateUnusable, TrainingDiverged, WorkerDied
from tasks.files.durable import read, write_text
from tasks.steps.child_environment import child_environment
from tasks.training import processes
from tasks.training.events import EVENTS, Follower
from tasks.training.job import JOB, TrainingJob
from tasks.training.outcome import ATTEMPTS, SUMMARY, Attempt, Summary, finished, step_folder
from tasks.training.worker import Exit

Listener = Callable[[list[dict[str, Any]]], None]
LOG = "worker.log"
LOOK_EVERY_SECONDS = 0.5


@dataclass
class Try:
    """How one try of a training went, as its event log and its exit code say."""

    code: int = 0
    failure: Exit | None = None
    text: str = ""
    from_step: int = 0
    taken: int | None = None
    newest_step: int = 0
    killed: bool = False
    divisible: bool = True
    """Whether some pack of this try holds more than one record, so that a smaller one can be tried."""

    def look(self, events: list[dict[str, Any]]) -> None:
        """Take in what the log says; of several failures the first counts."""
        for event in events:
            match event["event"]:
                case "start":
                    self.from_step = int(event["from_step"])
                    self.newest_step = max(self.newest_step, self.from_step)
                    self.divisible = bool(event.get("divisible", True))
                case "step":
                    self.newest_step = max(self.newest_step, int(event["step"]))
                case "diverged":
                    self.taken = int(event["taken"])
                case "failed" if self.failure is None and event.get("failure") in Exit.__members__:
                    self.failure, self.text = Exit[event["failure"]], str(event.get("text", ""))


def train(job: TrainingJob, listen: Listener, environment: Mapping[str, str] | None = None) -> Summary:
    """Run a job to its end in a process of its own, or pick up where an interrupted one stopped; the training's
    summary.

    Raises OutOfMemory, TrainingDiverged or WorkerDied for what another try can mend: what was learned (a smaller
    micro-batch, a lower learning rate) is kept in the folder for it. Raises PermanentError for what it cannot.
    """
    if summary := finished(job.folder):
        listen(Follower(job.folder / EVENTS).new())
        return summary
    attempt = read(job.folder / ATTEMPTS, Attempt)
    if attempt is not None:
        changes = {"micro_batch_divisor", "learning_rate_scale"}
        job = job.model_copy(update=attempt.model_dump(include=changes))
    job = job.model_copy(update={"parent": os.getpid()})
    variables = child_environment(environment or {})
    processes.check(job.compute, job.recipe.method, variables)
    write_text(job.folder / JOB, job.model_dump_json(indent=1))
    done = _run(job, listen, variables)
    if done.code != Exit.done:
        raise _failure(job, done, attempt or Attempt())
    if (summary := read(job.folder / SUMMARY, Summary)) is None:
        raise WorkerDied(
            f"{job.folder}: the training ended, but what it wrote is not whole; the next try writes it again."
        )
    return summary


def _run(job: TrainingJob, listen: Listener, variables: Mapping[str, str]) -> Try:
    """Start the training and follow it to its end."""
    follower, this = Follower(job.folder / EVENTS), Try()
    before = follower.new()
    this.newest_step = max((int(event["step"]) for event in before if event["event"] == "step"), default=0)
    listen(before)

    def look() -> None:
        new = follower.new()
        this.look(new)
        listen(new)

    command, added = processes.command(job.folder / JOB, job.compute, variables)
    with (job.folder / LOG).open("ab") as output:
        written = output.tell()
        worker = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env={**variables, **added}
        )
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
    this.code = worker.returncode
    # A launcher, which outlives its workers, writes down what they died of.
    said = (job.folder / LOG).read_bytes()[written:] if processes.launched(job.compute) else b""
    this.killed = this.code == -signal.SIGKILL or b"SIGKILL" in said
    return this


def _failure(job: TrainingJob, this: Try, attempt: Attempt) -> Exception:
    """The error for a training that ended early; what the next try should do differently is written down first.

    A process's own report goes before the exit code: a launcher has one code for every failure.
    """
    code = this.code
    if this.failure is not None:
        code = this.failure
    elif code > 0 and processes.launched(job.compute):
        code = Exit.peer_lost
    if code == Exit.disk_full:
        return StateUnusable(
            f"{job.folder}: the disk is full; free space, or point TUNELINE_HOME elsewhere. The next run goes on from "
            "the last checkpoint."
        )
    taken = {"micro_batch_divisor": job.micro_batch_divisor, "learning_rate_scale": job.learning_rate_scale}
    learned, error = _learned(job, code, this, attempt.model_copy(update=taken))
    write_text(job.folder / ATTEMPTS, learned.model_dump_json())
    return error


def _learned(job: TrainingJob, code: int, this: Try, attempt: Attempt) -> tuple[Attempt, Exception]:
    """What the next try has to know, and the error that starts it or is the end."""
    if code == Exit.out_of_memory and not this.divisible:
        return attempt, PermanentError(
            f"{job.folder}: training ran out of memory with one record at a time, and less than one cannot be tried. "
            "Lower prompt.max_length, set compute.gradient_checkpointing, or take a method that needs less: `tuneline "
            "plan RECIPE` shows them."
        )
    if code == Exit.out_of_memory:
        return _halved(job, attempt, "training ran out of memory")
    if code == Exit.diverged:
        return _gentler(job, this, attempt)
    again = attempt.killed_at is not None and this.newest_step <= attempt.killed_at
    if this.killed and again and this.divisible:
        what = (
            f"training was killed (signal 9) twice and came no further than step {this.newest_step}, which the kernel"
        )
        return _halved(job, attempt, f"{what} does when memory ends: this is a guess;")
    if code in (Exit.interrupted, Exit.peer_lost) or code < 0:
        at = this.newest_step if this.killed else attempt.killed_at
        return attempt.model_copy(update={"killed_at": at}), WorkerDied(
            f"the training process {_how(code)}; the next try goes on from its last checkpoint "
            f"({job.folder / 'checkpoints'}). Its own words are in {job.folder / LOG}."
        )
    said = f": {this.text}" if this.text else f" (exit code {code})"
    return attempt, PermanentError(f"the training process failed{said}; the end of {job.folder / LOG}:\n{_tail(job)}")


def _halved(job: TrainingJob, attempt: Attempt, what: str) -> tuple[Attempt, Exception]:
    error = OutOfMemory(
        f"{what} with packs of {job.recipe.batch_tokens // job.micro_batch_divisor} tokens; "
        "the next try halves them and keeps the examples of each step."
    )
    return attempt.model_copy(update={"micro_batch_divisor": 2 * job.micro_batch_divisor}), error


def _gentler(job: TrainingJob, this: Try, attempt: Attempt) -> tuple[Attempt, Exception]:
    """What follows a loss or gradient that is no number: another learning rate, another checkpoint, or the end.

    In a try's first step the learning rate has not been used yet: what it set out from is bad.
    """
    start, at_once = this.from_step, this.taken == 0
    said = f"a loss or gradient is no longer a number ({this.text.partition(': ')[2] or 'see the log'})"
    if at_once and not start:
        return attempt, PermanentError(
            f"{said}, before a weight was moved: the base model gives no number for these examples, and no learning "
            "rate mends that. Use compute.precision fp32, or another base."
        )
    scale = job.learning_rate_scale if at_once else job.learning_rate_scale / 2
    rate = "the same learning rate" if at_once else f"{scale:g} of the learning rate"
    if start and (at_once or attempt.diverged_from == start):
        shutil.rmtree(step_folder(job.folder / "checkpoints", start), ignore_errors=True)
        why = "at once" if at_once else "twice"
        what = (
            f"it diverged {why} from the checkpoint of step {start}, which is deleted; the next try starts from the one"
        )
        text = f"{said}; {what} before it, at {rate}."
    else:
        text = f"{said}; the next try starts from the last good checkpoint at {rate}."
    changes = {"learning_rate_scale": scale, "diverged_from": start, "killed_at": None}
    return attempt.model_copy(update=changes), TrainingDiverged(text)


def _how(code: int) -> str:
    if code == Exit.interrupted:
        return "was asked to end"
    return f"was killed by signal {-code}" if code < 0 else "lost one of its processes, killed or cut off"


def _tail(job: TrainingJob) -> str:
    return "\n".join((job.folder / LOG).read_text("utf-8", errors="replace").splitlines()[-12:])
