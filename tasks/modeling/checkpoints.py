"""Trainer state in, a folder to resume from out, whole or not at all: weights, optimiser, position."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tasks.modeling.methods import trainable
from tasks.modeling.sharing import as_shared, whole
from tasks.store import file_digest

KEPT = 2
FILES = ("weights.safetensors", "optimizer.pt")


def save_weights(model: Any, folder: Path, main: bool = True) -> None:
    """The parameters that move, as safetensors, renamed into place when whole.

    Every process of a training calls this, since weights may be shared out among them; the `main` one writes.
    """
    tensors = _moving(model, main)
    if main:
        partial = _empty(folder.with_name(f".{folder.name}.partial"))
        save_file(tensors, partial / "weights.safetensors")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)


def _moving(model: Any, keep: bool) -> dict[str, torch.Tensor]:
    return whole({name: parameter.detach() for name, parameter in trainable(model).items()}, keep)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def load_weights(model: Any, folder: Path) -> None:
    """Put saved parameters back; every one of them must be there."""
    tensors = load_file(folder / "weights.safetensors")
    with torch.no_grad():
        for name, parameter in trainable(model).items():
            parameter.copy_(as_shared(tensors[name], parameter))


def save(folder: Path, model: Any, optimizer: Any, state: dict[str, Any], main: bool = True) -> None:
    """Write checkpoint `step-<n>`; the two newest stay, so that a damaged last one costs one interval.

    Every process calls this, the `main` one writes: the files are the same for any number of processes.
    """
    content = optimizer.state_dict()
    tensors = _moving(model, main)
    moments = {number: whole(entries, main) for number, entries in content["state"].items()}
    if not main:
        return
    final = folder / f"step-{int(state['step']):08d}"
    partial = _empty(folder / f".{final.name}.partial")
    save_file(tensors, partial / "weights.safetensors")
    torch.save({**content, "state": moments}, partial / "optimizer.pt")
    digests = {name: file_digest(partial / name) for name in FILES}
    (partial / "state.json").write_text(json.dumps({"files": digests, "state": state}), "utf-8")
    for path in partial.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        shutil.rmtree(old)


def resume(folder: Path, model: Any, optimizer: Any) -> dict[str, Any] | None:
    """Load the newest checkpoint that is whole into model and optimiser; its state, or None to start anew."""
    for checkpoint in sorted(folder.glob("step-*"), reverse=True):
        state = _whole(checkpoint)
        if state is not None:
            load_weights(model, checkpoint)
            content = torch.load(checkpoint / "optimizer.pt", weights_only=True, map_location="cpu")
            parameters = list(trainable(model).values())
            for number, entries in content["state"].items():
                entries.update({name: as_shared(value, parameters[number]) for name, value in entries.items()})
            optimizer.load_state_dict(content)
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
