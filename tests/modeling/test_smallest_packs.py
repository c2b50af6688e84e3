"""Out of memory with packs that cannot be smaller: the training says so, and is not tried again in vain."""

import signal
from collections.abc import Callable

import pytest

from tasks.errors import OutOfMemory, PermanentError, WorkerDied
from tasks.training import events, launch
from tasks.training.job import TrainingJob
from tasks.training.loop import Training
from tasks.training.outcome import ATTEMPTS, Attempt
from tasks.training.worker import Exit

Make = Callable[..., TrainingJob]
SINGLE = 4096
"""Cut into so many parts, a pack of 256 tokens has room for no record, and gets one."""


def tried(job: TrainingJob, divisor: int) -> launch.Try:
    """What the log of a try with smaller packs says."""
    Training(job.model_copy(update={"micro_batch_divisor": divisor})).run()
    this = launch.Try(code=Exit.out_of_memory)
    this.look(list(events.read(job.folder / events.EVENTS)))
    return this


def test_a_try_says_whether_its_packs_can_be_smaller(job: Make) -> None:
    assert tried(job("whole", max_steps=1), 1).divisible
    assert not tried(job("single", max_steps=1), SINGLE).divisible


def test_out_of_memory_with_one_record_at_a_time_is_final_and_says_what_to_change(job: Make) -> None:
    error = launch._failure(job(), launch.Try(code=Exit.out_of_memory, divisible=False), Attempt())
    assert type(error) is PermanentError and not isinstance(error, OutOfMemory)
    assert "one record at a time" in str(error) and "prompt.max_length" in str(error)


def test_kills_with_one_record_at_a_time_are_not_answered_by_smaller_packs(job: Make) -> None:
    small = job()
    killed = launch.Try(code=-signal.SIGKILL, killed=True, divisible=False)
    assert type(launch._failure(small, killed, Attempt(killed_at=0))) is WorkerDied
    attempt = launch.read(small.folder / ATTEMPTS, Attempt)
    assert attempt is not None and attempt.micro_batch_divisor == 1


def test_validation_packs_shrink_with_those_of_the_training(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a validation that has no room would halve the training's packs without end."""
    made: list[int] = []
    training = Training(job(max_steps=1).model_copy(update={"micro_batch_divisor": SINGLE}))
    real = training.strategy.turns
    monkeypatch.setattr(training.strategy, "turns", lambda packs: made.append(len(packs)) or real(packs))
    training.validation_loss()
    assert made == [len(training.validation)]
