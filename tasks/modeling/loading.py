"""Trained or registered weights in, a model that answers out; an adapter is proved live before anyone scores it."""

import gc
import math
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tasks.errors import InvalidBaseModel, WorkRefused
from tasks.modeling.adapter_files import check_files
from tasks.modeling.methods import autocast_dtype, device, load_base
from tasks.modeling.origin import is_adapter, origin_of
from tasks.prompts import _as_ids
from tasks.recipe.stages import Precision

ROOM_FOR_WEIGHTS = 0.7
"""Of a GPU's memory; the rest is for what is read and computed while a model answers."""


def load_model(base: Path, weights: Path | None, base_digest: str, trust_remote_code: bool = False) -> Any:
    """The base alone, the base with an adapter, or full weights: whatever `weights` holds; in evaluation mode.

    An adapter's base is quantised as it was in training.

    Raises InvalidBaseModel when an adapter was trained on another base, or holds pickled files.
    """
    if weights is None or not is_adapter(weights):
        folder = weights or base
        return _without_sampling_defaults(
            load_base(folder, trust_remote_code=trust_remote_code, dtype=inference_dtype(folder)).eval()
        )
    check_files(weights)
    origin = origin_of(weights)
    if origin.get("base") != base_digest:
        raise InvalidBaseModel(
            f"{weights}: the adapter was trained on base {origin.get('base')}, not on {base} ({base_digest})."
        )
    loaded = load_base(
        base, trust_remote_code=trust_remote_code, quantisation=origin.get("quantisation"), dtype=inference_dtype(base)
    )
    return with_adapter(_without_sampling_defaults(loaded), weights)


def inference_dtype(folder: Path) -> torch.dtype:
    """The number format in which a model folder is asked and folded.

    fp32, which answers alike alone and in a batch; on a GPU that cannot hold its weights so, what is fast there.
    """
    where = device()
    if where.type == "cpu":
        return torch.float32
    room = torch.cuda.get_device_properties(where).total_memory
    fits = 4 * stored_parameters(folder) <= ROOM_FOR_WEIGHTS * room
    return torch.float32 if fits else autocast_dtype(Precision.auto, where)


def free_gpu_memory() -> None:
    """Give back what models that nobody holds any more took of a GPU: another process may need it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def stored_parameters(folder: Path) -> int:
    """Numbers in a folder's safetensors files; only their headers are read."""
    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return count


def with_adapter(model: Any, weights: Path) -> Any:
    """A loaded base with a saved adapter on it, in evaluation mode."""
    from peft import PeftModel

    return PeftModel.from_pretrained(model, weights).eval()


def _without_sampling_defaults(model: Any) -> Any:
    """Take away a folder's sampling defaults (a repetition penalty, say), as serving does; stop tokens stay."""
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(eos_token_id=model.generation_config.eos_token_id)
    return model


def stops_as_scored(model: Any, tokenizer: Any) -> list[int]:
    """Make a model that is to be saved stop by itself where it is scored to stop, and answer greedily as scored.

    The stop tokens, which are given back, are those of its own folder and the tokenizer's.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    stops = sorted(_as_ids(own.eos_token_id) | {tokenizer.eos_token_id})
    model.generation_config = GenerationConfig(
        eos_token_id=stops if len(stops) > 1 else stops[0], pad_token_id=own.pad_token_id, bos_token_id=own.bos_token_id
    )
    return stops


def check_adapter_active(model: Any, prompt_ids: list[int]) -> float:
    """Largest difference of a prompt's last logits with the adapter on and off.

    Raises WorkRefused when there is none: the adapter was not loaded, or learned nothing, and the base would be scored.
    """
    ids = torch.tensor([prompt_ids], device=model.device)
    with torch.inference_mode():
        on = model(input_ids=ids).logits[0, -1]
        with model.disable_adapter():
            off = model(input_ids=ids).logits[0, -1]
    difference = float((on - off).abs().max())
    if difference == 0.0:
        raise WorkRefused(
            "evaluate: disabling the adapter does not change the logits: it is not active, so the base would be scored."
        )
    return difference
