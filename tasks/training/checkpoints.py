"""Trainer state in, a folder to resume from out, whole or not at all: weights, optimiser, position.

The files are the same for any number of processes and any strategy. Every process calls what saves, since weights may
be shared out among them; the first one writes.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tasks.files.durable import sync_folder, sync_tree
from tasks.modeling.methods import trainable
from tasks.steps.store import file_digest
from tasks.training.outcome import step_folder
from tasks.training.strategies import Replicated

KEPT = 2
CHECKPOINTS, BEST = "checkpoints", "best"
WEIGHTS, OPTIMIZER, STATE = "weights.safetensors", "optimizer.pt", "state.json"


@dataclass(config=ConfigDict(extra="forbid"))
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


def save_best(job: Path, strategy: Replicated, step: int) -> None:
    """Keep the parameters that move as the best so far; those that a checkpoint speaks of stay beside them."""
    tensors = strategy.weights()
    if not strategy.accelerator.is_main_process:
        return
    folder = step_folder(job / BEST, step)
    partial = _partial(folder)
    save_file(tensors, partial / WEIGHTS)
    _seal(partial, folder, {"step": step})
    wanted = {step, *(state.best_step for _, state in _states(job))}
    for old in (job / BEST).glob("step-*"):
        if old not in {step_folder(job / BEST, number) for number in wanted}:
            shutil.rmtree(old)


def load_best(model: Any, job: Path, step: int) -> None:
    """Put the parameters that were kept as the best back into a model that no strategy has taken over."""
    load_weights(model, step_folder(job / BEST, step))


def load_weights(model: Any, folder: Path) -> None:
    """Put saved parameters back into a model that no strategy has taken over; every one of them must be there."""
    tensors = load_file(folder / WEIGHTS)
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(tensors[name])


def save(job: Path, strategy: Replicated, progress: Progress) -> None:
    """Write checkpoint `step-<n>`; the two newest stay, so that a damaged last one costs one interval."""
    tensors, optimizer = strategy.weights(), strategy.optimizer_state()
    if not strategy.accelerator.is_main_process:
        return
    folder = step_folder(job / CHECKPOINTS, progress.step)
    partial = _partial(folder)
    save_file(tensors, partial / WEIGHTS)
    torch.save(optimizer, partial / OPTIMIZER)
    _seal(partial, folder, asdict(progress))
    for old in sorted((job / CHECKPOINTS).glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def _partial(folder: Path) -> Path:
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def _seal(partial: Path, folder: Path, state: Mapping[str, Any]) -> None:
    """Write down what a folder's files are, put all on the disk, and give the folder its name."""
    digests = {path.name: file_digest(path) for path in sorted(partial.iterdir())}
    (partial / STATE).write_text(json.dumps({"files": digests, "state": state}), "utf-8")
    sync_tree(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    sync_folder(folder.parent)


def newest(
    job: Path, shapes: Mapping[str, tuple[int, ...]], warn: Callable[[str], None]
) -> tuple[Path, Progress] | None:
    """The newest checkpoint that is whole, with the best weights it speaks of, and its state; None to start anew.

    `shapes` are those of the parameters that move. `warn` is told of each checkpoint that is passed over, and why.
    """
    for checkpoint in sorted((job / CHECKPOINTS).glob("step-*"), reverse=True):
        try:
            progress = TypeAdapter(Progress).validate_python(_whole(checkpoint, [WEIGHTS, OPTIMIZER]))
            if progress.best_loss is not None:
                _whole(step_folder(job / BEST, progress.best_step), [WEIGHTS])
            if _shapes(checkpoint / WEIGHTS) != shapes:
                raise ValueError("it holds other parameters than this training moves")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as fault:
            warn(f"{checkpoint}: passed over, it is not what was written ({_reason(fault)})")
        else:
            return checkpoint, progress
    return None


def load_optimizer(strategy: Replicated, checkpoint: Path) -> None:
    """Put a checkpoint's optimiser state back."""
    content = torch.load(checkpoint / OPTIMIZER, weights_only=True, map_location="cpu")
    strategy.load_optimizer_state(content)


def _whole(folder: Path, names: list[str]) -> dict[str, Any]:
    """What a folder's state holds. Raises OSError, ValueError, KeyError or TypeError where a file is damaged."""
    content = json.loads((folder / STATE).read_text("utf-8"))
    for name in names:
        if file_digest(folder / name) != content["files"][name]:
            raise ValueError(f"{folder / name} has other bytes")
    return dict(content["state"])


def _states(job: Path) -> Iterator[tuple[Path, Progress]]:
    """The state of each checkpoint whose state can be read."""
    for checkpoint in (job / CHECKPOINTS).glob("step-*"):
        try:
            yield checkpoint, TypeAdapter(Progress).validate_python(_whole(checkpoint, []))
        except (OSError, ValueError, KeyError, TypeError):
            continue


def _shapes(path: Path) -> dict[str, tuple[int, ...]]:
    with safe_open(path, "pt") as content:
        return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118


def _reason(fault: Exception) -> str:
    if isinstance(fault, ValidationError):
        first = fault.errors(include_url=False)[0]
        return f"{STATE}: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(fault).__name__}: {fault}"
