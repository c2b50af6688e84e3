"""A tokenised dataset in, trained weights out: the training process started, followed and told to MLflow."""

import json
import logging
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import models
from tasks.artifacts import TokenizedDataset, TrainedWeights
from tasks.errors import TunelineError
from tasks.files.digests import model_digest, unchanged
from tasks.modeling.base_model import BaseModelFolder
from tasks.models import unchanged_base
from tasks.orchestration import shown_progress, step
from tasks.planning.plan import memory_points
from tasks.recipe.methods import CombineMethod
from tasks.recipe.stages import Recipe
from tasks.steps.progress import Meter
from tasks.steps.store import recorded_digest
from tasks.training import events, launch
from tasks.training.job import JOB, TrainingJob
from tasks.training.outcome import SUMMARY
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from tasks.registry.runs import MlflowRun, Point

VERSION = 3
SEND_EVERY_SECONDS = 15.0
NOT_PART_OF_THE_RESULT = {"checkpoint_seconds"}
log = logging.getLogger("tuneline")


@step(retries=3, retry_delay_seconds=[5, 30, 120])
def train(tokenized: TokenizedDataset, recipe: Recipe, workspace: Workspace) -> TrainedWeights:
    """Fit the weights the recipe asks for, or go on where an interrupted training stopped."""
    base = unchanged_base(recipe.base, tokenized, workspace)
    method = recipe.training.method
    parts = models.adapter_folders(method, workspace) if isinstance(method, CombineMethod) else []
    contents = identity(parts)
    inputs = {
        "version": VERSION,
        "data": tokenized.digest,
        "base": base.digest,
        "recipe": recipe.training.model_dump(mode="json", exclude=NOT_PART_OF_THE_RESULT),
        "compute": recipe.compute,
        "seed": recipe.seed,
        "adapters": contents,
    }
    with shown_progress(f"{recipe.name} train", 1, "steps") as meter:
        follower = Follower(workspace, meter)

        def build(folder: Path) -> TrainedWeights:
            if parts:
                origin = origin_for(base, tokenized, recipe)
                return combined(folder, parts, contents, tokenized, base, origin, recipe)
            with unchanged(base.folder, base.digest):
                return _build(folder, tokenized, base, recipe, follower)

        weights = workspace.store.make("train", inputs, TrainedWeights, build, resumable=not parts, uses=[tokenized])

    def tell(run: "MlflowRun") -> None:
        from tasks.registry import runs

        _log_to_mlflow(run, weights)
        if not parts:
            runs.log_points(run, memory_points(recipe, base.folder, tokenized, weights))

    workspace.run.log_once(weights, tell)
    return weights


class Follower:
    """Takes events as the worker writes them: to the meter, and to MLflow in batches.

    An MLflow that does not answer, or refuses, costs nothing here: every point is sent again, with its own time, when
    the step is done.
    """

    def __init__(self, workspace: Workspace, meter: Meter) -> None:
        self.workspace, self.meter = workspace, meter
        self.reachable = True
        self.waiting: list[dict[str, Any]] = []
        self.sent = time.monotonic()

    def __call__(self, new: Sequence[dict[str, Any]]) -> None:
        for event in new:
            self._show(event)
            if event["event"] == "start" and event.get("retakes_until"):
                # Of a try that failed only what was sent before is ever seen.
                self.waiting = [one for one in self.waiting if one.get("step", 0) <= event["from_step"]]
            self.waiting.append(event)
        # Seldom, since each batch takes processor time from the training beside it.
        if self.reachable and self.waiting and time.monotonic() - self.sent >= SEND_EVERY_SECONDS:
            from tasks.registry import runs

            self.sent = time.monotonic()
            points, self.waiting = points_of(self.waiting), []
            try:
                runs.log_points(self.workspace.run.open(), points)
            except TunelineError as fault:
                # Whatever MLflow's fault is: a training is worth more than the sight of its curve.
                self.reachable = False
                log.warning("train: MLflow does not take it; training goes on, its curve is sent at the end. %s", fault)

    def _show(self, event: dict[str, Any]) -> None:
        meter = self.meter
        if event["event"] == "start":
            meter.expect(event["steps"], event["from_step"])
            share = event["trainable_parameters"] / event["parameters"]
            log.info(
                "train: %s of %s parameters trainable (%.2f %%); %s steps, starting at %s",
                f"{event['trainable_parameters']:,}",
                f"{event['parameters']:,}",
                100 * share,
                f"{event['steps']:,}",
                event["from_step"],
            )
            for warning in event.get("warnings", ()):
                log.warning("train: %s", warning)
        elif event["event"] == "step" and event["step"] > meter.done:
            meter.note = f"loss {event['loss']:.3f}, {event['tokens_per_second']:,.0f} tokens/s"
            meter(event["step"] - meter.done)
        elif event["event"] == "validation":
            log.info(
                "train: step %s, validation loss %.4f (best at step %s)",
                event["step"],
                event["loss"],
                event["best_step"],
            )


def points_of(new: Sequence[dict[str, Any]]) -> "list[Point]":
    """The curve in some events: training and validation loss, learning rate, gradient norm, speed."""
    from tasks.registry.runs import Point

    points = []
    for event in new:
        when = int(event["time"] * 1000)
        if event["event"] == "step":
            for name in ("loss", "learning_rate", "grad_norm", "tokens_per_second"):
                # In fp16 a step whose gradients overflowed is not taken, and their norm is no number for a plot.
                if math.isfinite(event[name]):
                    points.append(Point(f"train/{name}", event[name], event["step"], when))
        elif event["event"] == "validation":
            points.append(Point("validation/loss", event["loss"], event["step"], when))
    return points


def origin_for(base: BaseModelFolder, tokenized: TokenizedDataset, recipe: Recipe) -> dict[str, Any]:
    """What the weights are bound to; kept beside them as `origin.json`."""
    return {
        "base": base.digest,
        "base_name": base.name,
        "base_revision": base.hub_revision,
        "quantisation": recipe.training.method.quantisation,
        "tokenizer": base.tokenizer_digest,
        "template": tokenized.template_digest,
        "system": recipe.prompt.system,
    }


def _build(
    folder: Path, tokenized: TokenizedDataset, base: BaseModelFolder, recipe: Recipe, follower: Follower
) -> TrainedWeights:
    job = TrainingJob(
        folder=folder,
        base=base.folder,
        base_name=base.name,
        base_digest=base.digest,
        data_digests=(
            recorded_digest(tokenized, "train.parquet"),
            recorded_digest(tokenized, "validation.parquet"),
        ),
        trust_remote_code=recipe.base.trust_remote_code,
        train=tokenized.path("train.parquet"),
        validation=tokenized.path("validation.parquet"),
        tokenizer=tokenized.path("tokenizer"),
        recipe=recipe.training,
        compute=recipe.compute,
        seed=recipe.seed,
        origin=origin_for(base, tokenized, recipe),
    )
    summary = launch.train(job, follower)
    # Only the trainer needs these, and it is done.
    for name in ("checkpoints", "best", "start"):
        shutil.rmtree(folder / name, ignore_errors=True)
    return TrainedWeights(
        digest=model_digest(folder / "weights"),
        method=recipe.training.method.type,
        kind=recipe.training.method.gives,
        base_digest=base.digest,
        steps=summary.step,
        tokens=summary.tokens,
        seconds=summary.seconds,
        trainable_parameters=summary.trainable_parameters,
        best_step=summary.best_step or summary.step,
        best_validation_loss=summary.best_loss,
        final_training_loss=summary.final_loss,
        stopped_early=summary.stopped_early,
        peak_memory=summary.peak_memory,
        not_merged=recipe.training.method.not_merged,
    )


def _log_to_mlflow(run: "MlflowRun", weights: TrainedWeights) -> None:
    """The whole curve, with the log's own times: what is there already is not doubled.

    Points of a try that diverged were sent as it ran, and MLflow takes none back: `train.retaken` names their steps.
    """
    from tasks.registry import runs

    curve = list(events.read(weights.path(events.EVENTS)))
    runs.log_points(run, points_of(curve))
    if steps := retaken(curve):
        runs.log_tags(run, {"train.retaken": f"{steps}: of two points of a step, the later one counts"})
    files = [weights.path(name) for name in (events.EVENTS, JOB, SUMMARY, PARTS)]
    runs.log_files(run, {"training": [path for path in files if path.exists()]})


def retaken(curve: Sequence[dict[str, Any]]) -> str:
    """The steps that were taken again with another learning rate or micro-batch, in words; empty for none.

    >>> start = {"event": "start", "from_step": 15, "retakes_until": 40}
    >>> retaken([start]), retaken([start | {"retakes_until": 0}])
    ('steps 16 to 40', '')
    """
    pairs = [(event["from_step"] + 1, event.get("retakes_until", 0)) for event in curve if event["event"] == "start"]
    return " and ".join(f"steps {first} to {last}" for first, last in pairs if last)


PARTS = "parts.json"


def identity(folders: list[Path]) -> list[str]:
    """What tells adapters apart, wherever they lie: digests of weights, configuration and what they are bound to."""
    return [model_digest(folder) for folder in folders]


def combined(
    folder: Path,
    folders: list[Path],
    contents: list[str],
    tokenized: TokenizedDataset,
    base: BaseModelFolder,
    origin: dict[str, Any],
    recipe: Recipe,
) -> TrainedWeights:
    """Put the adapters together into `weights/`: what a training leaves, without one; `contents` is their identity."""
    from tasks.modeling.combining import combine

    method = recipe.training.method
    assert isinstance(method, CombineMethod)
    started = time.monotonic()
    tokenizer = tokenized.path("tokenizer")
    trust = recipe.base.trust_remote_code
    target = folder / "weights"
    with ExitStack() as reading:
        for path, content in [(base.folder, base.digest), *zip(folders, contents, strict=True)]:
            reading.enter_context(unchanged(path, content))
        moved = combine(base.folder, folders, method, origin, target, recipe.seed, tokenizer, trust)
    parts = {"adapters": dict(zip(method.adapters, contents, strict=True)), "method": method.model_dump()}
    (folder / PARTS).write_text(json.dumps(parts, indent=1), "utf-8")
    return TrainedWeights(
        digest=model_digest(target),
        method=method.type,
        kind="adapter",
        base_digest=base.digest,
        steps=0,
        tokens=0,
        seconds=time.monotonic() - started,
        trainable_parameters=moved,
        best_step=0,
        best_validation_loss=None,
        final_training_loss=0.0,
    )
