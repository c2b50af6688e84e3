"""A job in, trained weights out: the training loop, as pure as the machine allows.

Every step is a function of the weights before it, its examples and its number: the order comes from the seed, and the
random state is set anew for each pack. So a resumed training takes the same steps as one that was never interrupted, on
a CPU with the same number of threads to the bit. Several processes, which share each step's packs, take the steps of
one, up to the order of sums.
"""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from tasks.errors import StateUnusable, TrainingDiverged
from tasks.files.digests import unchanged
from tasks.files.durable import sync_tree, write_text
from tasks.files.known_digests import file_digest
from tasks.modeling import saving
from tasks.modeling.losses import pack_loss
from tasks.modeling.methods import autocast_dtype, count, device, load_for_training, trainable
from tasks.modeling.packs import Pack, collate, fill, plan, read_examples
from tasks.training import checkpoints, distributed, process_memory
from tasks.training.checkpoints import Progress
from tasks.training.events import EVENTS, EventLog
from tasks.training.job import TrainingJob
from tasks.training.outcome import SUMMARY, WEIGHTS, Summary, weights_files
from tasks.training.schedules import learning_rate

PRECISIONS = {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}
MOST_SKIPPED = 30
"""Steps in a row whose gradients may overflow fp16. Each halves the scale of the loss, which starts at 2 ** 16."""


class Interrupted(Exception):
    """The process was asked to end; a checkpoint is written."""


class Training:
    """One training: model, optimiser, plan and log, put together from a job."""

    def __init__(self, job: TrainingJob, stop: Callable[[], bool] = lambda: False) -> None:
        recipe = job.recipe
        self.job, self.recipe, self.stop = job, recipe, stop
        distributed.select_device()
        precision = PRECISIONS[autocast_dtype(job.compute.precision, device())]
        self.strategy = distributed.start(job.compute.strategy, precision)
        self.accelerator = self.strategy.accelerator
        self.main: bool = self.accelerator.is_main_process
        model = self._load()
        self.start = saving.keep_start(model, job.folder / "start") if self.main else None
        self.examples, self.validation = read_examples(job.train), read_examples(job.validation)
        self._check_data()
        self.plan = plan(
            [len(ids) for ids, _ in self.examples],
            recipe.batch_tokens,
            recipe.gradient_accumulation,
            recipe.epochs,
            recipe.max_steps,
            job.seed,
            job.micro_batch_divisor,
        )
        self.parameters = count(model)
        self.trainable_parameters = sum(parameter.numel() for parameter in trainable(model).values())
        self._prepare(model)
        self.log = EventLog(job.folder / EVENTS) if self.main else None
        self.checkpointed = time.monotonic()
        self.started_from = self.progress.step
        self.skipped = 0

    def _prepare(self, model: Any) -> None:
        """Hand the model to the strategy, as the last checkpoint left it where there is one."""
        recipe, self.warnings = self.recipe, list[str]()
        shapes = {name: tuple(parameter.shape) for name, parameter in trainable(model).items()}
        checkpoint = checkpoints.newest(self.job.folder, shapes, self.warnings.append)
        if checkpoint is not None:
            checkpoints.load_weights(model, checkpoint[0])
        optimizer = torch.optim.AdamW(
            trainable(model).values(),
            lr=recipe.highest_rate,
            weight_decay=recipe.weight_decay,
            # On a GPU the default makes a copy of all that moves at each step; fused, it is faster and makes none.
            fused=device().type == "cuda" or None,
        )
        self.strategy.prepare(model, optimizer, recipe.max_grad_norm)
        self.progress = Progress()
        if checkpoint is not None:
            folder, self.progress = checkpoint
            checkpoints.load_optimizer(self.strategy, folder)

    @property
    def model(self) -> Any:
        """The model as the strategy computes with it."""
        return self.strategy.model

    @property
    def plain(self) -> Any:
        """The model without any wrapping."""
        return self.strategy.plain

    def _load(self) -> Any:
        job = self.job
        torch.manual_seed(job.seed)
        with unchanged(job.base, job.base_digest) if job.base_digest else nullcontext():
            return load_for_training(job.base, self.recipe.method, job.compute, job.trust_remote_code)

    def _check_data(self) -> None:
        """Raise StateUnusable where other examples were read than the step is keyed by; no step was taken yet."""
        paths = (self.job.train, self.job.validation)
        for path, wanted in zip(paths, self.job.data_digests or (), strict=False):
            if file_digest(path) != wanted:
                raise StateUnusable(f"{path}: it changed after it was tokenised; run again: it is made again.")

    def _log_event(self, event: str, **fields: Any) -> None:
        """Write to the event log, which the first process keeps."""
        if self.log is not None:
            self.log.write(event, **fields)

    def run(self) -> Progress:
        """Train to the end, from the last checkpoint where there is one; leave `weights/` behind.

        Raises Interrupted when asked to stop, TrainingDiverged when a loss or a gradient is not a number.
        """
        progress, total = self.progress, len(self.plan.steps)
        self._check_same_start()
        self._start_log(total)
        every = max(1, math.ceil(total / self.recipe.validations))
        while progress.step < total and not progress.stopped_early:
            self._step(progress.step, total)
            if self.validation and (progress.step % every == 0 or progress.step == total):
                self._validate()
            due = time.monotonic() - self.checkpointed >= self.recipe.checkpoint_seconds
            # Agreed: a process that alone stopped, or wrote a checkpoint, would leave the others waiting.
            stop, due = map(bool, self.strategy.largest(self.stop(), due))
            if stop or due:
                self._checkpoint()
            if stop:
                raise Interrupted
        self._save()
        return progress

    def _start_log(self, steps: int) -> None:
        if self.log is None:
            return
        job = self.job
        self.log.start(
            self.started_from,
            {"micro_batch_divisor": job.micro_batch_divisor, "learning_rate_scale": job.learning_rate_scale},
            self.warnings,
            steps=steps,
            tokens=sum(len(ids) for ids, _ in self.examples),
            trainable_parameters=self.trainable_parameters,
            parameters=self.parameters,
            divisible=any(len(pack) > 1 for step in self.plan.steps for pack in step),
        )

    def _diverged(self, step: int, what: str) -> TrainingDiverged:
        """The error for a number that is none, raised before a checkpoint can hold what came of it."""
        taken = self.progress.step - self.started_from
        self._log_event("diverged", step=step, from_step=self.started_from, taken=taken)
        return TrainingDiverged(f"step {step}: {what}")

    def _check_same_start(self) -> None:
        step = self.progress.step
        if self.strategy.largest(step, -step) != [step, -step]:
            raise StateUnusable(
                f"{self.job.folder}: the processes found different checkpoints in it; all machines of a training need "
                "to see one and the same folder."
            )

    def _step(self, number: int, total: int) -> None:
        """One optimiser step over its packs: the mean loss over all labels of the step."""
        started = time.monotonic()
        scale = learning_rate(number, total, self.recipe.warmup_ratio, self.recipe.schedule)
        rate = self.recipe.highest_rate * self.job.learning_rate_scale * scale
        packs = [collate([self.examples[example] for example in pack]) for pack in self.plan.steps[number]]
        labels = sum(pack.targets.numel() for pack in packs)
        loss = self._accumulate(number, packs, labels)
        if not math.isfinite(loss):
            raise self._diverged(number + 1, f"the loss is {loss}")
        norm = self.strategy.step(rate)
        self._check_norm(number + 1, norm)
        progress = self.progress
        tokens = sum(pack.input_ids.numel() for pack in packs)
        seconds = time.monotonic() - started
        progress.step += 1
        progress.tokens += tokens
        progress.seconds += seconds
        progress.losses = [*progress.losses[-19:], loss]
        self._log_event(
            "step",
            step=progress.step,
            loss=loss,
            learning_rate=rate,
            grad_norm=norm,
            tokens=tokens,
            tokens_per_second=tokens / seconds,
        )

    def _check_norm(self, step: int, norm: float) -> None:
        """In fp16 a step whose gradients overflow is not taken, and the next has a smaller scale; not without end."""
        self.skipped = self.skipped + 1 if self.strategy.skipped else 0
        if self.skipped > MOST_SKIPPED:
            raise self._diverged(step, f"the gradients overflowed fp16 {self.skipped} steps in a row")
        if not (math.isfinite(norm) or self.skipped):
            raise self._diverged(step, f"the norm of the gradients is {norm}")

    def _accumulate(self, step: int, packs: Sequence[Pack], labels: int) -> float:
        """Gradients of this process's packs; the loss of all packs, in nats a label."""
        accelerator, turns = self.accelerator, self.strategy.turns(packs)
        total = torch.zeros((), device=accelerator.device)
        for turn, (number, pack, weight) in enumerate(turns, 1):
            # By pack, so that a pack meets the same dropout whichever process has it.
            torch.manual_seed(self.job.seed * 1_000_003 + step + (number << 40))
            with accelerator.autocast():
                loss = pack_loss(self.model, pack.to(accelerator.device)) / labels
            self.strategy.backward(loss * weight, last=turn == len(turns))
            total += loss.detach() * bool(weight)
        return float(accelerator.reduce(total, "sum"))

    def _validate(self) -> None:
        """Mean loss over the validation split's labels; keep the weights when it is the best so far."""
        progress = self.progress
        loss = self.validation_loss()
        if not math.isfinite(loss):
            raise self._diverged(progress.step, f"the validation loss is {loss}")
        if progress.best_loss is None or loss < progress.best_loss:
            progress.best_loss, progress.best_step, progress.without_improvement = loss, progress.step, 0
            checkpoints.save_best(self.job.folder, self.strategy, progress.step)
        else:
            progress.without_improvement += 1
        patience = self.recipe.early_stopping_patience
        progress.stopped_early = bool(patience) and progress.without_improvement >= patience
        self._log_event("validation", step=progress.step, loss=loss, best_step=progress.best_step)

    def validation_loss(self) -> float:
        """Nats a label over the validation split."""
        self.model.eval()
        accelerator, examples = self.accelerator, self.validation
        sums = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
        room = self.recipe.batch_tokens // self.job.micro_batch_divisor
        packs = fill(range(len(examples)), [len(ids) for ids, _ in examples], room)
        # Not inference_mode: weights gathered in it could not be trained on afterwards.
        with torch.no_grad(), accelerator.autocast():
            for _, numbers, weight in self.strategy.turns(packs):
                pack = collate([examples[number] for number in numbers]).to(accelerator.device)
                measured = torch.stack([pack_loss(self.model, pack).double(), sums.new_tensor(pack.targets.numel())])
                sums += measured * bool(weight)
        self.model.train()
        loss, labels = accelerator.reduce(sums, "sum").tolist()
        return float(loss / labels)

    def _checkpoint(self) -> None:
        checkpoints.save(self.job.folder, self.strategy, self.progress)
        self._log_event("checkpoint", step=self.progress.step)
        self.accelerator.wait_for_everyone()
        self.checkpointed = time.monotonic()

    def _save(self) -> None:
        """Write `weights/`: adapter or model, the tokenizer with its template, and what they are bound to."""
        job, progress, shared_out = self.job, self.progress, self.strategy.is_sharded
        peak_memory = int(*self.strategy.largest(process_memory.peak()))
        if shared_out and progress.best_loss is None:
            checkpoints.save_best(job.folder, self.strategy, progress.best_step)
        if not self.main:
            return
        if shared_out:
            # Alone, one process cannot write what is shared out: it fills a model of its own, in the room of its share.
            self.strategy.release()
        model = self._load() if shared_out else self.plain
        if shared_out or progress.best_loss is not None:
            checkpoints.load_best(model, job.folder, progress.best_step)
        shutil.rmtree(job.folder / WEIGHTS, ignore_errors=True)
        saving.save(model, job.tokenizer, job.folder / WEIGHTS, job.origin, self.start, job.trust_remote_code)
        self._sum_up(peak_memory)
        self._log_event("done", step=progress.step, seconds=progress.seconds)

    def _sum_up(self, peak_memory: int) -> None:
        """Write the summary, once the weights are on the disk."""
        progress, folder = self.progress, self.job.folder
        sync_tree(folder / WEIGHTS)
        summary = Summary(
            step=progress.step,
            tokens=progress.tokens,
            seconds=progress.seconds,
            best_step=progress.best_step,
            best_loss=progress.best_loss,
            stopped_early=progress.stopped_early,
            final_loss=sum(progress.losses) / max(1, len(progress.losses)),
            trainable_parameters=self.trainable_parameters,
            peak_memory=peak_memory,
            files=weights_files(folder),
        )
        write_text(folder / SUMMARY, summary.model_dump_json(indent=1))
