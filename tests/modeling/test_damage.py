"""Records of an interrupted training, damaged in every way a crash or a foreign hand can: the next try ends well."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file

from tasks.errors import OutOfMemory, PermanentError, TrainingDiverged, WorkerDied
from tasks.recipe.methods import LoraMethod
from tasks.recipe.stages import Strategy
from tasks.steps.store import file_digest
from tasks.training import distributed, events, launch
from tasks.training.job import JOB, TrainingJob
from tasks.training.loop import MOST_SKIPPED, Interrupted, Training
from tasks.training.outcome import ATTEMPTS, SUMMARY, Attempt, Summary, finished, weights_files
from tasks.training.worker import Exit

Make = Callable[..., TrainingJob]
Damage = Callable[[Path], None]


def foreign(content: bytes) -> Damage:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zeroed(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def more(path: Path) -> None:
    """A field that nobody knows, in the record and in the state it holds."""
    content = json.loads(path.read_text("utf-8"))
    content["more"] = 1
    if "state" in content:
        content["state"]["more"] = 1
    path.write_text(json.dumps(content), "utf-8")


def mistyped(path: Path) -> None:
    """Every value is a word."""
    content = json.loads(path.read_text("utf-8"))
    content = {
        name: dict.fromkeys(value, "word") if isinstance(value, dict) else "word" for name, value in content.items()
    }
    path.write_text(json.dumps(content), "utf-8")


ANY: dict[str, Damage] = {"empty": foreign(b""), "cut": cut, "zeros": zeroed, "gone": Path.unlink}
OF_JSON: dict[str, Damage] = {
    **ANY,
    "null": foreign(b"null"),
    "a list": foreign(b"[]"),
    "a number": foreign(b"7"),
    "no UTF-8": foreign(b"\xff\xfe\x80 {"),
    "an unknown field": more,
    "wrong types": mistyped,
}
NEWEST, BEST = "checkpoints/step-00000008", "best/step-00000008"
RECORDS: dict[str, dict[str, Damage]] = {
    f"{NEWEST}/state.json": OF_JSON,
    f"{NEWEST}/weights.safetensors": ANY,
    f"{NEWEST}/optimizer.pt": ANY,
    f"{BEST}/state.json": {name: damage for name, damage in OF_JSON.items() if name != "an unknown field"},
    f"{BEST}/weights.safetensors": ANY,
}


@pytest.fixture(scope="module")
def whole(module_job: Make) -> TrainingJob:
    small = module_job("whole")
    Training(small).run()
    return small


@pytest.fixture(scope="module")
def stopped(module_job: Make) -> TrainingJob:
    """A training of 12 steps, stopped after step 4 and after step 8, each time with a checkpoint and a best."""
    small = module_job("stopped")
    for _ in range(2):
        stops = iter([False] * 3 + [True])
        with pytest.raises(Interrupted):
            Training(small, stop=lambda stops=stops: next(stops)).run()
    assert sorted(path.name for path in (small.folder / "best").iterdir()) == ["step-00000004", "step-00000008"]
    return small


@pytest.fixture
def broken(stopped: TrainingJob, tmp_path: Path) -> TrainingJob:
    shutil.copytree(stopped.folder, tmp_path / "broken")
    return stopped.model_copy(update={"folder": tmp_path / "broken"})


def weights(job: TrainingJob) -> dict[str, torch.Tensor]:
    return load_file(job.folder / "weights" / "adapter_model.safetensors")


def assert_same(ours: TrainingJob, theirs: TrainingJob) -> None:
    one, other = weights(ours), weights(theirs)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in other)


def log_of(job: TrainingJob, kind: str) -> list[dict[str, Any]]:
    return [event for event in events.read(job.folder / events.EVENTS) if event["event"] == kind]


@pytest.mark.parametrize(
    ("record", "damage"),
    [
        pytest.param(record, damage, id=f"{record}-{name}", marks=() if name in ("empty", "null") else pytest.mark.slow)
        for record, damages in RECORDS.items()
        for name, damage in damages.items()
    ],
)
def test_a_damaged_checkpoint_or_best_is_named_and_left_for_the_one_before(
    broken: TrainingJob, whole: TrainingJob, record: str, damage: Damage
) -> None:
    damage(broken.folder / record)
    Training(broken).run()
    start = log_of(broken, "start")[-1]
    assert start["from_step"] == 4
    assert any(NEWEST in warning for warning in start["warnings"])
    assert_same(broken, whole)
    assert [event["step"] for event in log_of(broken, "step")] == list(range(1, 13))


@pytest.mark.parametrize("damage", OF_JSON.values(), ids=OF_JSON)
def test_a_damaged_summary_or_attempt_counts_as_not_there_and_is_named(
    broken: TrainingJob, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    (broken.folder / "weights").mkdir()
    (broken.folder / "weights" / "model.safetensors").write_bytes(b"weights")
    summary = Summary(
        step=12,
        tokens=1,
        seconds=1.0,
        best_step=0,
        best_loss=None,
        stopped_early=False,
        final_loss=1.0,
        trainable_parameters=1,
        peak_memory=1,
        files=weights_files(broken.folder),
    )
    records: dict[str, Summary | Attempt] = {SUMMARY: summary, ATTEMPTS: Attempt(learning_rate_scale=0.5)}
    for name, record in records.items():
        (broken.folder / name).write_text(record.model_dump_json(), "utf-8")
    assert finished(broken.folder) == summary
    for name in records:
        damage(broken.folder / name)
    assert finished(broken.folder) is None
    assert launch.read(broken.folder / ATTEMPTS, Attempt) is None
    for name in records:
        assert str(broken.folder / name) in caplog.text or not (broken.folder / name).exists()


@pytest.mark.parametrize("damage", ANY.values(), ids=ANY)
def test_a_summary_speaks_only_of_weights_that_are_whole(
    broken: TrainingJob, whole: TrainingJob, damage: Damage
) -> None:
    shutil.copytree(whole.folder / "weights", broken.folder / "weights")
    shutil.copy(whole.folder / SUMMARY, broken.folder / SUMMARY)
    assert finished(broken.folder) is not None
    damage(broken.folder / "weights" / "adapter_model.safetensors")
    assert finished(broken.folder) is None


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(OF_JSON["null"], id="null"),
        *(pytest.param(damage, id=name, marks=pytest.mark.slow) for name, damage in OF_JSON.items() if name != "null"),
    ],
)
def test_a_training_all_of_whose_records_are_damaged_alike_ends_with_the_same_weights(
    broken: TrainingJob, whole: TrainingJob, damage: Damage
) -> None:
    shutil.copytree(whole.folder / "weights", broken.folder / "weights")
    shutil.copy(whole.folder / SUMMARY, broken.folder / SUMMARY)
    (broken.folder / ATTEMPTS).write_text(Attempt(learning_rate_scale=0.5).model_dump_json(), "utf-8")
    (broken.folder / JOB).write_text(broken.model_dump_json(), "utf-8")
    for name in (SUMMARY, ATTEMPTS, JOB, *(record for record in RECORDS if record.endswith(".json"))):
        damage(broken.folder / name)
    assert launch.train(broken, lambda _: None).step == 12
    assert_same(broken, whole)


BROKEN_LINES = {
    "cut": b'{"event": "step", "ste',
    "empty": b"",
    "null": b"null",
    "a list": b"[]",
    "a number": b"7",
    "no UTF-8": b"\xff\xfe\x80",
    "zeros": b"\0" * 40,
    "without its fields": b'{"event": "step", "time": 1.0}',
    "wrong types": b'{"event": "step", "time": "now", "step": "one"}',
}


@pytest.mark.parametrize("line", BROKEN_LINES.values(), ids=BROKEN_LINES)
def test_a_broken_line_of_the_log_costs_that_line_and_is_named(
    broken: TrainingJob, whole: TrainingJob, line: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path = broken.folder / events.EVENTS
    lines = path.read_bytes().splitlines()
    at = next(number for number, text in enumerate(lines) if b'"step", ' in text and b'"step": 3,' in text)
    lines[at] = line
    path.write_bytes(b"\n".join(lines) + b"\n")
    Training(broken).run()
    assert f"{path}:{at + 1}" in caplog.text
    assert [event["step"] for event in log_of(broken, "step")] == [1, 2, *range(4, 13)]
    assert log_of(broken, "start")[-1]["warnings"] == [f"{path}: it lost step 3, which the curve lacks from now on"]
    assert_same(broken, whole)


@pytest.mark.parametrize("damage", ["gone", "empty"])
def test_a_lost_log_is_said(broken: TrainingJob, damage: str) -> None:
    OF_JSON[damage](broken.folder / events.EVENTS)
    Training(broken).run()
    (start,) = log_of(broken, "start")
    assert "lost steps 1 to 8" in start["warnings"][0]


def test_the_follower_of_a_log_that_is_written_anew_gives_what_comes_after_once(broken: TrainingJob) -> None:
    follower = events.Follower(broken.folder / events.EVENTS)
    before = follower.new()
    assert [event["step"] for event in before if event["event"] == "step"] == list(range(1, 9))
    Training(broken).run()
    after = follower.new()
    assert after[0]["event"] == "start"
    assert [event["step"] for event in after if event["event"] == "step"] == list(range(9, 13))


def test_another_attempt_drops_the_steps_that_it_takes_again(broken: TrainingJob) -> None:
    before = [event["learning_rate"] for event in log_of(broken, "step")]
    shutil.rmtree(broken.folder / NEWEST)
    Training(broken.model_copy(update={"learning_rate_scale": 0.5})).run()
    steps = log_of(broken, "step")
    assert [event["step"] for event in steps] == list(range(1, 13))
    assert [event["learning_rate"] for event in steps[:8]] == [*before[:4], *(rate / 2 for rate in before[4:])]
    assert log_of(broken, "start")[-1]["retakes_until"] == 8


def test_the_same_attempt_keeps_the_steps_that_it_takes_again(broken: TrainingJob) -> None:
    before = log_of(broken, "step")
    shutil.rmtree(broken.folder / NEWEST)
    Training(broken).run()
    assert log_of(broken, "step")[:8] == before


def spoil(checkpoint: Path) -> None:
    """Weights that are no numbers, under a digest that is right."""
    path = checkpoint / "weights.safetensors"
    save_file({name: torch.full_like(value, float("nan")) for name, value in load_file(path).items()}, path)
    state = json.loads((checkpoint / "state.json").read_text("utf-8"))
    state["files"][path.name] = file_digest(path)
    (checkpoint / "state.json").write_text(json.dumps(state), "utf-8")


@pytest.mark.slow
def test_a_checkpoint_that_is_whole_and_bad_is_left_for_the_one_before(broken: TrainingJob, whole: TrainingJob) -> None:
    spoil(broken.folder / NEWEST)
    with pytest.raises(TrainingDiverged, match="at once from the checkpoint of step 8, which is deleted"):
        launch.train(broken, lambda _: None)
    assert not (broken.folder / NEWEST).exists()
    launch.train(broken, lambda _: None)
    assert log_of(broken, "start")[-1]["from_step"] == 4
    assert_same(broken, whole)


def test_a_second_divergence_from_the_same_checkpoint_deletes_it(broken: TrainingJob) -> None:
    failed = launch.Try(code=Exit.diverged, failure=Exit.diverged, from_step=8, taken=2, newest_step=10)
    error = launch._failure(broken, failed, Attempt())
    assert isinstance(error, TrainingDiverged) and (broken.folder / NEWEST).exists()
    attempt = launch.read(broken.folder / ATTEMPTS, Attempt)
    assert attempt == Attempt(learning_rate_scale=0.5, diverged_from=8)
    again = broken.model_copy(update={"learning_rate_scale": 0.5})
    error = launch._failure(again, failed, attempt)
    assert "twice from the checkpoint of step 8" in str(error) and not (broken.folder / NEWEST).exists()
    assert launch.read(broken.folder / ATTEMPTS, Attempt) == Attempt(learning_rate_scale=0.25, diverged_from=8)


def test_a_base_that_gives_no_numbers_is_not_tried_again(job: Make) -> None:
    small = job()
    failed = launch.Try(code=Exit.diverged, failure=Exit.diverged, text="E: step 1: the loss is nan", taken=0)
    error = launch._failure(small, failed, Attempt())
    assert type(error) is PermanentError and "step 1: the loss is nan" in str(error)


def test_a_gradient_that_is_no_number_ends_the_try_before_a_checkpoint_can_hold_it(job: Make) -> None:
    small = job(method=LoraMethod(rank=4, alpha=8, dropout=0.0))
    training = Training(small, stop=lambda: training.progress.step == 6)
    moving = training.strategy.parameters[0]
    moving.register_hook(lambda grad: grad * float("inf") if training.progress.step == 4 else grad)
    training.checkpointed -= 1e6
    with pytest.raises(TrainingDiverged, match=r"step 5: the norm of the gradients is (nan|inf)"):
        training.run()
    assert log_of(small, "diverged")[-1]["taken"] == 4
    for checkpoint in (small.folder / "checkpoints").iterdir():
        assert all(value.isfinite().all() for value in load_file(checkpoint / "weights.safetensors").values())


def test_overflowing_steps_of_fp16_are_skipped_but_not_without_end(job: Make) -> None:
    training = Training(job())
    training.strategy.skipped = True
    for step in range(1, MOST_SKIPPED + 1):
        training._check_norm(step, float("inf"))
    with pytest.raises(TrainingDiverged, match="overflowed fp16 31 steps in a row"):
        training._check_norm(MOST_SKIPPED + 1, float("inf"))


@pytest.mark.parametrize("fused", [True, None], ids=["fused, as on a GPU", "not fused"])
def test_a_step_whose_gradients_overflow_is_known_to_be_skipped(fused: bool | None) -> None:
    strategy = distributed.start(Strategy.replicated, "no")
    strategy.accelerator.scaler = torch.amp.GradScaler("cpu")
    model = torch.nn.Linear(2, 1)
    strategy.prepare(model, torch.optim.AdamW(model.parameters(), fused=fused), 1.0)
    for factor, skipped in ((1.0, False), (float("inf"), True), (1.0, False)):
        before = model.weight.detach().clone()
        strategy.backward(factor * model(torch.ones(1, 2)).sum(), last=True)
        strategy.step(0.1)
        assert strategy.skipped is torch.equal(before, model.weight) is skipped


@pytest.fixture
def killing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[TrainingJob], launch.Listener]]:
    """Makes listeners that kill the worker of a job at the first sight, as the system does when memory ends."""
    monkeypatch.setattr(launch, "LOOK_EVERY_SECONDS", 0.05)

    def killer(job: TrainingJob) -> launch.Listener:
        def listen(_: list[dict[str, Any]]) -> None:
            for child in psutil.Process().children(recursive=True):
                if str(job.folder / JOB) in child.cmdline():
                    os.kill(child.pid, signal.SIGKILL)
                    time.sleep(0.1)

        return listen

    yield killer


def test_two_kills_by_the_system_without_a_step_between_them_halve_the_micro_batch(
    job: Make, killing: Callable[[TrainingJob], launch.Listener]
) -> None:
    small = job()
    with pytest.raises(WorkerDied, match="signal 9") as first:
        launch.train(small, killing(small))
    assert not isinstance(first.value, OutOfMemory)
    with pytest.raises(OutOfMemory, match=r"twice and came no further than step 0.*a guess"):
        launch.train(small, killing(small))
    attempt = launch.read(small.folder / ATTEMPTS, Attempt)
    assert attempt is not None and attempt.micro_batch_divisor == 2


def test_a_kill_after_new_steps_is_no_sign_of_too_little_memory(broken: TrainingJob) -> None:
    killed = launch.Try(code=-signal.SIGKILL, killed=True, newest_step=8)
    error = launch._failure(broken, killed, Attempt(killed_at=7))
    assert type(error) is WorkerDied
    assert launch.read(broken.folder / ATTEMPTS, Attempt) == Attempt(killed_at=8)
