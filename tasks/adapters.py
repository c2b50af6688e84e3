"""Adapters that a recipe names in; their folders, and what they are put together to, out."""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tasks.artifacts import TokenizedDataset, TrainedWeights
from tasks.bases import REGISTRY, folder_at, version_at
from tasks.digests import model_digest, unchanged
from tasks.errors import InvalidRecipe
from tasks.modeling.adapter_files import check_plain_lora
from tasks.modeling.base_model import BaseModelFolder
from tasks.modeling.origin import ADAPTER_CONFIG, is_adapter
from tasks.recipe import Recipe
from tasks.recipe_methods import CombineMethod
from tasks.settings import State
from tasks.workplace import Workplace

PARTS = "parts.json"
KEY = "training.method.adapters"


def check_adapters(method: CombineMethod, state: State) -> None:
    """Raise InvalidRecipe, InvalidBaseModel or UnknownVersion where an address leads to no plain LoRA adapter.

    A version's files are fetched for that: they are small, and what is in them is known before a model is loaded.
    """
    for address in method.adapters:
        check_plain_lora(_folder(address, state), KEY)


def folders_of(method: CombineMethod, place: Workplace) -> list[Path]:
    """The folder of each adapter, fetched where it has to be; raises as `check_adapters` does."""
    return [_folder(address, place.state) for address in method.adapters]


def _folder(address: str, state: State) -> Path:
    """The folder that an address leads to, a version's fetched where it has to be."""
    registered = address.startswith(REGISTRY)
    folder = folder_at(version_at(address, KEY, state), state) if registered else Path(address).resolve()
    if not is_adapter(folder):
        raise InvalidRecipe(
            f"{KEY}: {address}: no adapter lies there (no {ADAPTER_CONFIG}); name a folder, or "
            "models:/<name>-adapter@alias."
        )
    return folder


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
