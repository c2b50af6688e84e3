"""A model's folder and a method in, its training measured by the product's own worker out: memory, speed, the merge."""

import json
import shutil
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.gpu.shapes import SHAPES, write_examples
from tasks.artifacts import Parity
from tasks.errors import OutOfMemory
from tasks.modeling import memory, merging
from tasks.modeling.generation import generate
from tasks.modeling.loading import free_gpu_memory
from tasks.modeling.methods import device
from tasks.prompts import stop_ids
from tasks.recipe.methods import EightBitLoraMethod, FullMethod, LoraMethod, Method, QLoraMethod
from tasks.recipe.stages import ComputeRecipe, TrainingRecipe
from tasks.training import events, launch
from tasks.training.job import TrainingJob

METHODS: dict[str, Method] = {
    "lora": LoraMethod(),
    "qlora": QLoraMethod(),
    "lora_8bit": EightBitLoraMethod(),
    "full": FullMethod(),
}
WARM_UP = 3
"""Steps at the start whose speed does not count."""
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 8, 32, 16


@dataclass(frozen=True)
class Load:
    """What every method trains on: `steps` packs of `tokens` tokens, in documents of `document`, half labelled."""

    steps: int
    tokens: int
    document: int
    checkpointing: bool


@dataclass(frozen=True)
class Measured:
    """One method on one shape; bytes and tokens a second. `fault` says why there is no measurement."""

    shape: str
    method: str
    parameters: int
    trainable_parameters: int
    predicted: memory.Memory
    peak: int = 0
    tokens_per_second: float = 0.0
    final_loss: float = 0.0
    fault: str = ""
    parities: dict[str, Parity] = field(default_factory=dict)
    """The merge of an adapter by each rule."""

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        parities = {rule: parity.model_dump() for rule, parity in self.parities.items()}
        predicted = vars(self.predicted) | {"total": self.predicted.total}
        return vars(self) | {"predicted": predicted, "parities": parities}


def measure(shape: str, base: Path, name: str, load: Load, folder: Path) -> Measured:
    """Train a method for some steps in a process of its own, then merge what it learned, where it is asked for."""
    method, compute = METHODS[name], ComputeRecipe(gradient_checkpointing=load.checkpointing)
    config = json.loads((base / "config.json").read_text("utf-8"))
    pack = memory.PackSize(load.tokens, load.tokens // 2, load.tokens // load.document)
    bf16 = device().type == "cpu" or _has_bf16()
    found = memory.predict(config, method, compute, pack, device().type, bf16)
    known = Measured(shape, name, found.parameters, found.trainable_parameters, found.memory)
    if found.memory.total > room():
        return replace(known, fault=f"does not fit into {room() / memory.GIB:.0f} GiB")
    place = folder / f"{shape}-{name}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        summary = launch.train(job_of(place, base, shape, method, compute, load), lambda _: None)
    except OutOfMemory as fault:
        return replace(known, fault=str(fault))
    finally:
        shutil.rmtree(place / "best", ignore_errors=True)
    parities = dict(merge_parities(place / "weights", base, shape)) if name == "qlora" else {}
    speeds = [event["tokens_per_second"] for event in events.read(place / events.EVENTS) if event["event"] == "step"]
    shutil.rmtree(place / "weights")
    return replace(
        known,
        peak=summary.peak_memory,
        tokens_per_second=statistics.median(speeds[WARM_UP:] or speeds),
        final_loss=summary.final_loss,
        parities=parities,
    )


def _has_bf16() -> bool:
    import torch

    return torch.cuda.get_device_capability(device())[0] >= 8


def room() -> int:
    """Bytes of the GPU, or of main memory."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device()).total_memory)
    import psutil

    return int(psutil.virtual_memory().total)


def job_of(folder: Path, base: Path, shape: str, method: Method, compute: ComputeRecipe, load: Load) -> TrainingJob:
    """The job: no validation, so that only steps are measured."""
    vocabulary, a_pack = SHAPES[shape]["vocab_size"], load.tokens // load.document
    return TrainingJob(
        folder=folder,
        base=base,
        base_name=base.name,
        trust_remote_code=False,
        train=write_examples(folder / "train.parquet", vocabulary, load.steps * a_pack, load.document),
        validation=write_examples(folder / "validation.parquet", vocabulary, 0, load.document),
        tokenizer=base,
        recipe=TrainingRecipe(method=method, batch_tokens=load.tokens, max_steps=load.steps, checkpoint_seconds=3600),
        compute=compute,
        seed=0,
        origin={"base": base.name, "base_name": base.name, "quantisation": method.quantisation},
    )


def merge_parities(weights: Path, base: Path, shape: str) -> Iterator[tuple[str, Parity]]:
    """What merging changes, by rule: base plus adapter as trained against the merged model, on random prompts."""
    import random

    draw = random.Random(1)
    prompts = [[draw.randrange(1, SHAPES[shape]["vocab_size"]) for _ in range(PROMPT_TOKENS)] for _ in range(PROMPTS)]
    adapter = merging.BoundAdapter(weights, base, base.name)
    model = adapter.load()
    stop = stop_ids(base)
    answers = _answers(model, prompts, stop)
    expected = list(merging.distributions(model, prompts, answers))
    for rule in adapter.rules:
        del model
        free_gpu_memory()
        model = adapter.load_for(rule).merge_and_unload(safe_merge=True)
        given = merging.distributions(model, prompts, answers)
        yield rule, merging.measure(expected, given, answers, _answers(model, prompts, stop))


def _answers(model: Any, prompts: list[list[int]], stop: frozenset[int]) -> list[list[int]]:
    return [answer.token_ids for answer in generate(model, prompts, stop, NEW_TOKENS, PROMPTS)]
