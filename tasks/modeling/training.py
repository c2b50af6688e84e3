"""A job in, trained weights out: the training loop, as pure as the machine allows.

Every step is a function of the weights before it, its examples and its number: the order comes from the seed, and the
random
state is set anew at each step. So a resumed training takes the same steps as one that was never interrupted; on a CPU
with the same number of threads, to the bit.
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from tasks.errors import TrainingDiverged
from tasks.modeling import checkpoints, saving
from tasks.modeling.batches import Pack, collate, fill, plan
from tasks.modeling.events import EVENTS, EventLog
from tasks.modeling.job import TrainingJob
from tasks.modeling.losses import pack_loss
from tasks.modeling.methods import autocast_dtype, count, device, load_for_training, trainable
from tasks.recipe import Schedule

Examples = Sequence[tuple[list[int], list[int]]]
PRECISIONS = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


class Interrupted(Exception):
    """The process was asked to end; a checkpoint is written."""


@dataclass
class Progress:
    """Where a training stands; with the moving weights and the optimiser, all that a checkpoint holds."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_step: int = 0
    best_loss: float | None = None
    without_improvement: int = 0
    losses: list[float] = field(default_factory=list)
    stopped_early: bool = False


def read_examples(path: Path) -> Examples:
    """The (input_ids, labels) pairs of a tokenised split."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["input_ids", "labels"])
    return list(zip(table["input_ids"].to_pylist(), table["labels"].to_pylist(), strict=True))


def learning_rate(step: int, steps: int, warmup_ratio: float, schedule: Schedule) -> float:
    """The share of the highest learning rate at a step (0-based).

    >>> [learning_rate(step, 10, 0.2, Schedule.linear) for step in (0, 1, 2, 6)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if schedule is Schedule.constant:
        return 1.0
    return 1.0 - done if schedule is Schedule.linear else 0.5 * (1.0 + math.cos(math.pi * done))


class Training:
    """One training: model, optimiser, plan and log, put together from a job."""

    def __init__(self, job: TrainingJob, stop: Callable[[], bool] = lambda: False) -> None:
        from accelerate import Accelerator

        recipe = job.recipe
        self.job, self.recipe, self.stop = job, recipe, stop
        precision = autocast_dtype(job.compute.precision, device())
        self.accelerator = Accelerator(mixed_precision=PRECISIONS[precision])
        torch.manual_seed(job.seed)
        model = load_for_training(job.base, recipe.method, job.compute, job.trust_remote_code)
        self.start = saving.keep_start(model, job.folder / "start")
        self.examples, self.validation = read_examples(job.train), read_examples(job.validation)
        self.plan = plan(
            [len(ids) for ids, _ in self.examples],
            recipe.batch_tokens,
            recipe.gradient_accumulation,
            recipe.epochs,
            recipe.max_steps,
            job.seed,
            job.micro_batch_divisor,
        )
        optimizer = torch.optim.AdamW(
            trainable(model).values(), lr=recipe.highest_rate, weight_decay=recipe.weight_decay
        )
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.parameters = list(trainable(self.model).values())
        self.log = EventLog(job.folder / EVENTS)
        self.progress = Progress()
        self.checkpointed = time.monotonic()

    @property
    def plain(self) -> Any:
        """The model without accelerate's wrapping."""
        return self.accelerator.unwrap_model(self.model)

    def run(self) -> Progress:
        """Train to the end, from the last checkpoint where there is one; leave `weights/` behind.

        Raises Interrupted when asked to stop, TrainingDiverged when a loss is not a number.
        """
        state = checkpoints.resume(self.job.folder / "checkpoints", self.plain, self.optimizer)
        if state is not None:
            self.progress = Progress(**state)
        progress, total = self.progress, len(self.plan.steps)
        self.log.write(
            "start",
            from_step=progress.step,
            steps=total,
            tokens=sum(len(ids) for ids, _ in self.examples),
            trainable_parameters=sum(parameter.numel() for parameter in self.parameters),
            parameters=count(self.plain),
        )
        every = max(1, math.ceil(total / self.recipe.validations))
        while progress.step < total and not progress.stopped_early:
            self._step(progress.step, total)
            if self.validation and (progress.step % every == 0 or progress.step == total):
                self._validate()
            if self.stop():
                self._checkpoint()
                raise Interrupted
            if time.monotonic() - self.checkpointed >= self.recipe.checkpoint_seconds:
                self._checkpoint()
        self._save()
        return progress

    def _step(self, number: int, total: int) -> None:
        """One optimiser step over its packs: the mean loss over all labels of the step."""
        started = time.monotonic()
        torch.manual_seed(self.job.seed * 1_000_003 + number)
        scale = learning_rate(number, total, self.recipe.warmup_ratio, self.recipe.schedule)
        rate = self.recipe.highest_rate * self.job.learning_rate_scale * scale
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        packs = [collate([self.examples[example] for example in pack]) for pack in self.plan.steps[number]]
        labels = sum(pack.targets.numel() for pack in packs)
        loss = self._accumulate(packs, labels)
        if not math.isfinite(loss):
            raise TrainingDiverged(f"step {number + 1}: the loss is {loss}")
        norm = self._clip()
        self.optimizer.step()
        self.optimizer.zero_grad()
        progress = self.progress
        tokens = sum(pack.input_ids.numel() for pack in packs)
        seconds = time.monotonic() - started
        progress.step += 1
        progress.tokens += tokens
        progress.seconds += seconds
        progress.losses = [*progress.losses[-19:], loss]
        self.log.write(
            "step",
            step=progress.step,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            tokens=tokens,
            tokens_per_second=tokens / seconds,
        )

    def _accumulate(self, packs: Sequence[Pack], labels: int) -> float:
        """Gradients of this process's share of the packs, summed over processes; the loss, in nats a label."""
        accelerator = self.accelerator
        total = torch.zeros((), device=accelerator.device)
        for pack in packs[accelerator.process_index :: accelerator.num_processes]:
            with accelerator.autocast():
                loss = pack_loss(self.model, pack.to(accelerator.device)) / labels
            accelerator.backward(loss)
            total += loss.detach()
        if accelerator.num_processes > 1:
            for parameter in self.parameters:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                parameter.grad = accelerator.reduce(parameter.grad, "sum")
            total = accelerator.reduce(total, "sum")
        return float(total)

    def _clip(self) -> float:
        limit = self.recipe.max_grad_norm or math.inf
        return float(self.accelerator.clip_grad_norm_(self.parameters, limit))

    def _validate(self) -> None:
        """Mean loss over the validation split's labels; keep the weights when it is the best so far."""
        progress = self.progress
        loss = self.validation_loss()
        if progress.best_loss is None or loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.without_improvement = loss, progress.step, 0
            checkpoints.save_weights(self.plain, self.job.folder / "best")
        else:
            progress.without_improvement += 1
        patience = self.recipe.early_stopping_patience
        progress.stopped_early = bool(patience) and progress.without_improvement >= patience
        self.log.write("validation", step=progress.step, loss=loss, best_step=progress.best_step)

    def validation_loss(self) -> float:
        """Nats a label over the validation split."""
        self.model.eval()
        total = torch.zeros((), dtype=torch.float64)
        labels = 0
        packs = fill(range(len(self.validation)), [len(ids) for ids, _ in self.validation], self.recipe.batch_tokens)
        with torch.inference_mode(), self.accelerator.autocast():
            for numbers in packs:
                pack = collate([self.validation[number] for number in numbers]).to(self.accelerator.device)
                total += pack_loss(self.model, pack).cpu().double()
                labels += pack.targets.numel()
        self.model.train()
        return float(total / labels)

    def _checkpoint(self) -> None:
        if self.accelerator.is_main_process:
            checkpoints.save(self.job.folder / "checkpoints", self.plain, self.optimizer, asdict(self.progress))
            self.log.write("checkpoint", step=self.progress.step)
        self.accelerator.wait_for_everyone()
        self.checkpointed = time.monotonic()

    def _save(self) -> None:
        """Write `weights/`: adapter or model, the tokenizer with its template, and what they are bound to."""
        if not self.accelerator.is_main_process:
            return
        job, progress = self.job, self.progress
        if progress.best_loss is not None:
            checkpoints.load_weights(self.plain, job.folder / "best")
        saving.save(self.plain, job.tokenizer, job.folder / "weights", job.origin, self.start)
        summary = asdict(progress) | {
            "trainable_parameters": sum(parameter.numel() for parameter in self.parameters),
            "peak_memory": saving.peak_memory(),
            "final_loss": sum(progress.losses) / max(1, len(progress.losses)),
        }
        (job.folder / "summary.json").write_text(json.dumps(summary, indent=1), "utf-8")
        self.log.write("done", step=progress.step, seconds=progress.seconds)
