"""Trainer state in, a folder to resume from out, whole or not at all: weights, optimiser, position.

The files are the same for any number of processes and any strategy. Every process calls what saves, since weights may
be shared out among them; the first one writes.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tasks.modeling.methods import trainable
from tasks.modeling.sharing import Replicated
from tasks.store import file_digest

KEPT = 2
FILES = ("weights.safetensors", "optimizer.pt")


def save_weights(folder: Path, strategy: Replicated) -> None:
    """The parameters that move, as safetensors, renamed into place when whole."""
    tensors = strategy.weights()
    if strategy.accelerator.is_main_process:
        partial = _empty(folder.with_name(f".{folder.name}.partial"))
        save_file(tensors, partial / "weights.safetensors")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def load_weights(model: Any, folder: Path) -> None:
    """Put saved parameters back into a model that no strategy has taken over; every one of them must be there."""
    tensors = load_file(folder / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(tensors[name])


def save(folder: Path, strategy: Replicated, state: dict[str, Any]) -> None:
    """Write checkpoint `step-<n>`; the two newest stay, so that a damaged last one costs one interval."""
    tensors, optimizer = strategy.weights(), strategy.optimizer_state()
    if not strategy.accelerator.is_main_process:
        return
    final = folder / f"step-{int(state['step']):08d}"
    partial = _empty(folder / f".{final.name}.partial")
    save_file(tensors, partial / "weights.safetensors")
    torch.save(optimizer, partial / "optimizer.pt")
    digests = {name: file_digest(partial / name) for name in FILES}
    (partial / "state.json").write_text(json.dumps({"files": digests, "state": state}), "utf-8")
    for path in partial.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def newest(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that is whole, and its state; None to start anew."""
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        state = _whole(checkpoint)
        if state is not None:
            return checkpoint, state
    return None


def load_optimizer(strategy: Replicated, checkpoint: Path) -> None:
    """Put a checkpoint's optimiser state back."""
    content = torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu")
    strategy.load_optimizer_state(content)


def _whole(checkpoint: Path) -> dict[str, Any] | None:
    """A checkpoint's state if its files are what was written; a damaged one is passed over for the one before it."""
    try:
        content = json.loads((checkpoint / "state.json").read_text("utf-8"))
        intact = all(file_digest(checkpoint / name) == content["files"][name] for name in FILES)
    except (OSError, ValueError, KeyError):
        return None
    return dict(content["state"]) if intact else None
