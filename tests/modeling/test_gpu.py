"""What only a GPU shows: mixed precision of every method, NCCL, memory that is refused. Skipped where there is none."""

import os
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.errors import OutOfMemory
from tasks.modeling.generation import generate
from tasks.modeling.loading import check_adapter_active, load_model
from tasks.modeling.losses import pack_losses
from tasks.modeling.merging import BoundAdapter, Questions, merge_best
from tasks.modeling.methods import load_for_training, trainable
from tasks.modeling.packs import collate
from tasks.prompts import Example, stop_ids
from tasks.recipe.methods import FullMethod, LoraMethod, QLoraMethod
from tasks.recipe.stages import ComputeRecipe, MergingRecipe, Precision
from tasks.training import events, launch, processes
from tasks.training.job import JOB, TrainingJob
from tasks.training.loop import Interrupted, Training
from tests.modeling.test_methods import METHODS, prompts_of

Make = Callable[..., TrainingJob]
MIXED = [Precision.bf16, Precision.fp16]
STRATEGIES = ["replicated", "fsdp2", "zero2", "zero3"]
if not torch.cuda.is_available():
    pytest.skip("this machine has no GPU", allow_module_level=True)


@pytest.fixture(autouse=True)
def another_precision() -> None:
    """accelerate keeps the first precision of a process for good."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def in_precision(job: TrainingJob, precision: Precision) -> TrainingJob:
    return job.model_copy(update={"compute": ComputeRecipe(precision=precision)})


def losses(job: TrainingJob) -> list[float]:
    return [event["loss"] for event in events.read(job.folder / events.EVENTS) if event["event"] == "step"]


@pytest.mark.parametrize("precision", MIXED)
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains_in_mixed_precision_and_answers(
    job: Make, tiny_base: Path, examples: list[Example], name: str, precision: Precision
) -> None:
    method, rate, _ = METHODS[name]
    training = Training(in_precision(job(method=method, learning_rate=rate, max_steps=24), precision))
    moving = trainable(training.plain)
    before = {key: value.detach().clone() for key, value in training.plain.named_parameters()}
    training.run()
    seen = losses(training.job)
    assert sum(seen[-4:]) < sum(seen[:4])
    assert {value.dtype for value in moving.values()} == {torch.float32}
    moved = {key for key, value in training.plain.named_parameters() if not torch.equal(value, before[key])}
    assert moved <= set(moving) and moved
    model = load_model(tiny_base, training.job.folder / "weights", "tiny")
    prompts, stops = prompts_of(examples[:6]), stop_ids(tiny_base)
    if name != "full":
        assert check_adapter_active(model, prompts[0]) > 0
    together, alone = (generate(model, prompts, stops, 6, size) for size in (6, 1))
    assert together == alone


@pytest.mark.parametrize("precision", MIXED)
@pytest.mark.parametrize("method", [LoraMethod(rank=4, alpha=8), FullMethod(), QLoraMethod(rank=4, alpha=8)])
def test_interrupted_and_resumed_it_takes_the_same_steps(job: Make, method: Any, precision: Precision) -> None:
    whole, broken = (in_precision(job(name, method=method), precision) for name in ("whole", "broken"))
    Training(whole).run()
    asked = iter([False] * 4 + [True])
    with pytest.raises(Interrupted):
        Training(broken, stop=lambda: next(asked)).run()
    Training(broken).run()
    assert losses(broken) == pytest.approx(losses(whole), rel=2e-2)


@pytest.mark.parametrize("precision", list(Precision))
def test_documents_in_a_pack_do_not_read_each_other(
    tiny_base: Path, examples: list[Example], precision: Precision
) -> None:
    compute = ComputeRecipe(precision=precision)
    model = load_for_training(tiny_base, LoraMethod(rank=4, alpha=8), compute)
    rows = [(example.input_ids, example.labels) for example in examples[:5]]
    with torch.inference_mode():
        packed = pack_losses(model, collate(rows).to(model.device))
        apart = torch.cat([pack_losses(model, collate([row]).to(model.device)) for row in rows])
    assert torch.allclose(packed, apart, atol=1e-4 if precision is Precision.fp32 else 5e-2)


def test_what_was_trained_in_bf16_is_merged_with_the_same_answers(
    job: Make, tiny_base: Path, examples: list[Example], tmp_path: Path
) -> None:
    for method in (LoraMethod(rank=4, alpha=8), QLoraMethod(rank=4, alpha=8)):
        made = in_precision(job(method.type, method=method, learning_rate=1e-2, max_steps=24), Precision.bf16)
        Training(made).run()
        questions = Questions(prompts_of(examples[:8]), stop_ids(tiny_base), 6, 8, lambda _: 0.0)
        adapter = BoundAdapter(made.folder / "weights", tiny_base, "tiny")
        candidates = merge_best(adapter, questions, MergingRecipe(), tmp_path / f"{method.type}-merged").candidates
        assert candidates[0].parity.answer_agreement == 1.0
        assert candidates[0].parity.mean_kl < 1e-5


@pytest.mark.parametrize("precision", MIXED)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_over_nccl_a_strategy_takes_the_steps_of_one_process(job: Make, strategy: str, precision: Precision) -> None:
    if strategy.startswith("zero") and find_spec("deepspeed") is None:
        pytest.skip("the extra `deepspeed` is not installed")
    one, shared = (in_precision(job(name, method=FullMethod()), precision) for name in ("one", "shared"))
    Training(one).run()
    # As two processes are launched, but with one: NCCL wants a GPU for each, and the machine may have one only.
    compute = ComputeRecipe(precision=precision, processes=2, strategy=strategy)
    place = shared.folder / JOB
    place.write_text(shared.model_copy(update={"compute": compute}).model_dump_json(), "utf-8")
    line, added = processes.command(place, compute)
    line[line.index("--num_processes") + 1] = "1"
    variables = {**os.environ, **added, "NCCL_DEBUG": "VERSION"}
    done = subprocess.run(line, env=variables, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "NCCL version" in done.stdout + done.stderr
    assert losses(shared) == pytest.approx(losses(one), rel=5e-2)
    assert losses(shared)[-1] < losses(shared)[0]


def test_memory_that_a_gpu_refuses_halves_the_micro_batch_of_the_next_try(job: Make) -> None:
    made = job()
    free, _ = torch.cuda.mem_get_info()
    hog = torch.empty(max(0, free - 2**28), dtype=torch.uint8, device="cuda")
    with pytest.raises(OutOfMemory):
        launch.train(made, lambda _: None)
    del hog
    torch.cuda.empty_cache()
    launch.train(made, lambda _: None)
    assert (made.folder / "weights").is_dir()
