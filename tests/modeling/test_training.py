import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tasks.errors import InvalidBaseModel, OutOfMemory, StateUnusable, TrainingDiverged, WorkerDied
from tasks.files.digests import model_digest
from tasks.files.known_digests import file_digest
from tasks.modeling.losses import pack_losses
from tasks.modeling.methods import load_base, load_for_training, trainable
from tasks.modeling.packs import collate, read_examples
from tasks.prompts import IGNORED, Example
from tasks.recipe.methods import FullMethod, LoraMethod
from tasks.recipe.stages import ComputeRecipe, Schedule
from tasks.training import events, launch
from tasks.training.job import JOB, TrainingJob
from tasks.training.loop import Interrupted, Training
from tasks.training.outcome import Attempt
from tasks.training.worker import Exit

Make = Callable[..., TrainingJob]


def points(job: TrainingJob, event: str) -> list[dict[str, float]]:
    return [point for point in events.read(job.folder / "events.jsonl") if point["event"] == event]


def weights(job: TrainingJob) -> dict[str, torch.Tensor]:
    return load_file(next((job.folder / "weights").glob("*.safetensors")))


def test_documents_in_a_pack_do_not_read_each_other(tiny_base: Path, examples: list[Example]) -> None:
    model = load_for_training(tiny_base, FullMethod(), ComputeRecipe())
    rows = [(example.input_ids, example.labels) for example in examples[:5]]
    with torch.inference_mode():
        packed = pack_losses(model, collate(rows))
        apart = torch.cat([pack_losses(model, collate([row])) for row in rows])
    assert torch.allclose(packed, apart, atol=1e-5)


def test_a_pack_gives_the_losses_of_the_plain_model(tiny_base: Path, examples: list[Example]) -> None:
    model, plain = load_for_training(tiny_base, FullMethod(), ComputeRecipe()), load_base(tiny_base)
    example = examples[0]
    with torch.inference_mode():
        ours = pack_losses(model, collate([(example.input_ids, example.labels)])).mean()
        theirs = plain(input_ids=torch.tensor([example.input_ids]), labels=torch.tensor([example.labels])).loss
    assert float(ours) == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.parametrize("method", [LoraMethod(rank=4, alpha=8), FullMethod()], ids=["lora", "full"])
def test_training_lowers_the_loss_and_moves_only_what_the_method_trains(
    job: Make, method: LoraMethod | FullMethod
) -> None:
    training = Training(job(method=method, max_steps=30))
    before = {name: parameter.detach().clone() for name, parameter in training.plain.named_parameters()}
    training.run()
    losses = [point["loss"] for point in points(training.job, "step")]
    moved = {name for name, value in training.plain.named_parameters() if not torch.equal(value, before[name])}
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert moved == set(trainable(training.plain))
    assert isinstance(method, FullMethod) or all("lora_" in name for name in moved)


def test_gradient_checkpointing_changes_memory_not_losses(job: Make) -> None:
    plain, checkpointed = job("plain", max_steps=4), job("checkpointed", max_steps=4)
    checkpointed = checkpointed.model_copy(update={"compute": ComputeRecipe(gradient_checkpointing=True)})
    Training(plain).run()
    Training(checkpointed).run()
    one, other = ([point["loss"] for point in points(made, "step")] for made in (plain, checkpointed))
    assert one == pytest.approx(other, rel=1e-4)


def test_a_training_interrupted_at_any_step_ends_with_the_same_weights(job: Make) -> None:
    whole, broken = job("whole"), job("broken")
    Training(whole).run()
    asked = iter([False] * 4 + [True])
    with pytest.raises(Interrupted):
        Training(broken, stop=lambda: next(asked)).run()
    Training(broken).run()
    ours, theirs = weights(broken), weights(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [p["loss"] for p in points(broken, "step")] == [p["loss"] for p in points(whole, "step")]


def test_a_damaged_last_checkpoint_costs_one_interval_not_the_training(job: Make) -> None:
    whole, broken = job("whole"), job("broken", checkpoint_seconds=1)
    Training(whole).run()
    asked = iter([False, True, False, True])
    for _ in range(2):
        with pytest.raises(Interrupted):
            Training(broken, stop=lambda: next(asked)).run()
    last = sorted((broken.folder / "checkpoints").glob("step-*"))[-1]
    (last / "optimizer.pt").write_bytes(b"torn")
    training = Training(broken)
    training.run()
    assert [point["from_step"] for point in points(broken, "start")] == [0, 2, 2]
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(broken).items())


def test_half_the_micro_batch_takes_the_same_steps(job: Make) -> None:
    method = LoraMethod(rank=4, alpha=8, dropout=0)
    one, half = job("one", method=method), job("half", method=method).model_copy(update={"micro_batch_divisor": 2})
    Training(one).run()
    Training(half).run()
    losses = [[point["loss"] for point in points(made, "step")] for made in (one, half)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_early_stopping_keeps_the_best_weights(job: Make) -> None:
    made = job(learning_rate=0.5, max_steps=40, validations=40, early_stopping_patience=3, max_grad_norm=0)
    progress = Training(made).run()
    assert progress.stopped_early
    assert progress.step == progress.best_step + 3
    saved = load_file(made.folder / "best" / f"step-{progress.best_step:08d}" / "weights.safetensors")
    assert all(
        torch.equal(value, saved[name.replace(".weight", ".default.weight")]) for name, value in weights(made).items()
    )


def test_a_training_that_read_another_base_or_other_examples_takes_no_step(job: Make, tiny_base: Path) -> None:
    made = job(max_steps=2)
    digests = (file_digest(made.train), file_digest(made.validation))
    with pytest.raises(InvalidBaseModel, match=f"{tiny_base}: its files changed before it was read"):
        Training(made.model_copy(update={"base_digest": "0" * 64}))
    with pytest.raises(StateUnusable, match=r"validation\.parquet: it changed after it was tokenised"):
        Training(made.model_copy(update={"data_digests": (digests[0], "0" * 64)}))
    assert not (made.folder / "events.jsonl").exists()
    right = {"base_digest": model_digest(tiny_base), "data_digests": digests}
    assert Training(made.model_copy(update=right)).run().step == 2


def test_an_adapter_is_described_in_the_same_bytes_by_every_process(job: Make) -> None:
    made = job(method=LoraMethod(target_modules=["v_proj", "q_proj", "down_proj"]), max_steps=1)
    Training(made).run()
    config = json.loads((made.folder / "weights" / "adapter_config.json").read_text("utf-8"))
    assert config["target_modules"] == ["down_proj", "q_proj", "v_proj"]


@pytest.mark.parametrize("schedule", list(Schedule))
def test_the_learning_rate_rises_then_follows_its_schedule(job: Make, schedule: Schedule) -> None:
    made = job(schedule=schedule, warmup_ratio=0.25, learning_rate=1e-3)
    Training(made).run()
    rates = [point["learning_rate"] for point in points(made, "step")]
    assert rates[:3] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3])
    assert (rates[-1] == pytest.approx(1e-3)) is (schedule is Schedule.constant)
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_the_log_holds_each_step_once_after_a_crash_without_a_checkpoint(job: Make) -> None:
    made = job()
    asked = iter([False] * 2 + [True])
    with pytest.raises(Interrupted):
        Training(made, stop=lambda: next(asked)).run()
    for checkpoint in (made.folder / "checkpoints").iterdir():
        checkpoint.rename(made.folder / "away")
    with (made.folder / "events.jsonl").open("a") as stream:
        stream.write('{"event": "step", "ste')
    Training(made).run()
    assert [point["step"] for point in points(made, "step")] == list(range(1, 13))


def test_a_worker_killed_hard_goes_on_from_its_checkpoint(job: Make) -> None:
    whole, killed = job("whole", max_steps=300), job("killed", max_steps=300, checkpoint_seconds=1)
    launch.train(whole, listen=lambda new: None)

    def kill(new: list[dict[str, object]]) -> None:
        if any(event["event"] == "checkpoint" for event in new):
            worker = next(int(p.name) for p in Path("/proc").glob("[0-9]*") if str(killed.folder / JOB) in _command(p))
            os.kill(worker, signal.SIGKILL)

    with pytest.raises(WorkerDied, match="signal 9"):
        launch.train(killed, kill)
    launch.train(killed, listen=lambda new: None)
    assert len(points(killed, "start")) == 2
    assert points(killed, "start")[1]["from_step"] > 0
    assert all(torch.equal(value, weights(whole)[name]) for name, value in weights(killed).items())


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_text()
    except OSError:
        return ""


def test_a_diverging_training_says_so_and_the_next_try_is_gentler(job: Make) -> None:
    made = job(learning_rate=1.0, max_grad_norm=0, method=FullMethod(), max_steps=60, warmup_ratio=0)
    made = made.model_copy(update={"learning_rate_scale": 1e30})
    with pytest.raises(TrainingDiverged, match="no longer a number"):
        launch.train(made, listen=lambda new: None)
    assert json.loads((made.folder / "attempts.json").read_text())["learning_rate_scale"] == 5e29


def test_out_of_memory_halves_the_micro_batch_of_the_next_try(job: Make) -> None:
    made = job(batch_tokens=256)
    # The mapping alone: a real refusal cannot be staged on every machine.
    assert isinstance(launch._failure(made, launch.Try(code=Exit.out_of_memory), Attempt()), OutOfMemory)
    assert json.loads((made.folder / "attempts.json").read_text())["micro_batch_divisor"] == 2


def test_a_worker_ends_with_a_checkpoint_when_its_parent_ends(job: Make) -> None:
    made = job(max_steps=100_000, epochs=100_000)
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    orphan = made.model_copy(update={"parent": parent.pid})
    (made.folder / JOB).write_text(orphan.model_dump_json())
    worker = subprocess.Popen([sys.executable, "-m", "tasks.training.worker", str(made.folder / JOB)])
    deadline = time.monotonic() + 60
    while not points(made, "step") and time.monotonic() < deadline:
        time.sleep(0.2)
    parent.kill()
    parent.wait()
    assert worker.wait(30) == 75
    assert list((made.folder / "checkpoints").glob("step-*"))


def test_labels_are_only_on_the_answer_and_its_stop_token(tiny_base: Path, job: Make) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    for ids, labels in read_examples(job().train):
        trained = [label for label in labels if label != IGNORED]
        assert trained[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(trained[:-1]) in {"blue", "green", "red", "white"}
        assert labels[0] == IGNORED and len(ids) == len(labels)


@pytest.mark.slow
def test_a_disk_that_fills_up_while_training_is_said_and_training_goes_on_once_there_is_room(
    job: Make, small_disk: Path
) -> None:
    made = job(method=FullMethod(), max_steps=40, checkpoint_seconds=1)
    made = made.model_copy(update={"folder": small_disk})
    filler = small_disk / "filler"
    filler.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - 200_000))
    with pytest.raises(StateUnusable, match="disk is full; free space"):
        launch.train(made, listen=lambda new: None)
    filler.unlink()
    assert launch.train(made, listen=lambda new: None).step == 40
