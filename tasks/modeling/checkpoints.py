"""Trainer state in, a folder to resume from out, whole or not at all: weights, optimiser, position."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tasks.modeling.methods import trainable
from tasks.store import file_digest

KEPT = 2
FILES = ("weights.safetensors", "optimizer.pt")


def save_weights(model: Any, folder: Path) -> None:
    """The parameters that move, as safetensors, renamed into place when whole."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(model, partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _write(model: Any, folder: Path) -> None:
    tensors = {name: parameter.detach().cpu().contiguous() for name, parameter in trainable(model).items()}
    save_file(tensors, folder / "weights.safetensors")


def load_weights(model: Any, folder: Path) -> None:
    """Put saved parameters back; every one of them must be there."""
    tensors = load_file(folder / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(tensors[name])


def save(folder: Path, model: Any, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> Path:
    """Write checkpoint `step-<n>`; the two newest stay, so that a damaged last one costs one interval."""
    step = int(state["step"])
    final = folder / f"step-{step:08d}"
    partial = folder / f".step-{step:08d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(model, partial)
    torch.save(optimizer.state_dict(), partial / "optimizer.pt")
    digests = {name: file_digest(partial / name) for name in FILES}
    (partial / "state.json").write_text(json.dumps({"files": digests, "state": state}), "utf-8")
    for path in partial.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)
    return final


def resume(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """Load the newest checkpoint that is whole into model and optimiser; its state, or None to start anew."""
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        state = _whole(checkpoint)
        if state is not None:
            load_weights(model, checkpoint)
            optimizer.load_state_dict(torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu"))
            return state
    return None


def _whole(checkpoint: Path) -> dict[str, Any] | None:
    """A checkpoint's state if its files are what was written; a damaged one is passed over for the one before it."""
    try:
        content = json.loads((checkpoint / "state.json").read_text("utf-8"))
        intact = all(file_digest(checkpoint / name) == content["files"][name] for name in FILES)
    except (OSError, ValueError, KeyError):
        return None
    return dict(content["state"]) if intact else None
