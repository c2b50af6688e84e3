"""An adapter's folder in, its configuration out, where it may be loaded: safetensors alone, or refused with a reason.

A combination takes adapters of anybody, so for that only the keys of a plain LoRA are allowed.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tasks.errors import InvalidBaseModel, InvalidRecipe
from tasks.files.model_files import json_object, pickled
from tasks.modeling.origin import ADAPTER_CONFIG
from tasks.recipe.methods import ALL_LINEAR

WEIGHTS = "adapter_model.safetensors"
PLAIN_LORA = frozenset(
    {
        *("peft_type", "task_type", "inference_mode", "peft_version", "base_model_name_or_path", "revision"),
        *("r", "lora_alpha", "lora_dropout", "use_rslora", "fan_in_fan_out"),
        *("target_modules", "rank_pattern", "alpha_pattern"),
    }
)
"""The keys that a plain LoRA sets; every other key of PEFT's class has to stand at that class's default."""
STARTS = (True, False, "gaussian")
"""Ways of starting that leave the base as it is, in PEFT's words; the saved matrices replace them."""
LARGEST_RANK, LARGEST_SCALE = 1 << 16, 1e9
"""Of an adapter: more than any model is wide, and more than any alpha."""
MODULE = re.compile(r"[\w.]+")
MATRIX = re.compile(r".*\.lora_(embedding_)?[AB](\.weight)?")


def check_files(weights: Path) -> dict[str, Any]:
    """An adapter's configuration, where its weights are safetensors; they are not loaded.

    Raises InvalidBaseModel where there are none, or where pickled files lie beside them.
    """
    if not (weights / WEIGHTS).is_file():
        raise InvalidBaseModel(f"{weights}: no {WEIGHTS}; save the adapter as safetensors, pickled ones are not read.")
    if pickles := pickled(weights):
        raise InvalidBaseModel(
            f"{weights}: holds pickled files ({', '.join(pickles)}), which can run code; take them away."
        )
    return json_object(weights / ADAPTER_CONFIG)


def check_plain_lora(weights: Path, key: str) -> dict[str, Any]:
    """The configuration of an adapter that is a plain LoRA; `key` is the recipe's, for the message.

    Raises InvalidRecipe with the first thing that no plain LoRA has, InvalidBaseModel as `check_files` does.
    """
    config = check_files(weights)
    kind = "DoRA" if config.get("use_dora") else config.get("peft_type")
    if kind != "LORA":
        raise InvalidRecipe(f"{key}: {weights} is {kind}; plain LoRA adapters can be combined, no others.")
    if fault := not_plain(config) or _foreign_matrix(weights / WEIGHTS):
        raise InvalidRecipe(f"{key}: {weights}: {fault}; plain LoRA adapters can be combined, no others.")
    return config


def not_plain(config: Mapping[str, Any]) -> str:
    """The first key that no plain LoRA has, with its value; empty where there is none.

    >>> not_plain({"r": 8, "target_modules": ["q_proj"], "layer_replication": [[0, 2]]})
    'adapter_config.json sets layer_replication to [[0, 2]]'
    """
    from peft import LoraConfig

    defaults = LoraConfig().to_dict()
    for name, value in config.items():
        match name:
            case "r":
                plain = _is_rank(value)
            case "lora_alpha":
                plain = _is_scale(value)
            case "lora_dropout":
                plain = type(value) in (int, float) and 0 <= value <= 1
            case "init_lora_weights":
                plain = value in STARTS
            case "target_modules":
                plain = value == ALL_LINEAR or (isinstance(value, list) and _are_names(value))
            case "rank_pattern" | "alpha_pattern":
                number = _is_rank if name == "rank_pattern" else _is_scale
                plain = not value or (
                    isinstance(value, dict) and _are_names(value) and all(map(number, value.values()))
                )
            case _:
                plain = name in PLAIN_LORA or not value or value == defaults.get(name)
        if not plain:
            return f"{ADAPTER_CONFIG} sets {name} to {json.dumps(value)[:80]}"
    return "" if "r" in config else f"{ADAPTER_CONFIG} sets no r"


def _is_rank(value: Any) -> bool:
    return type(value) is int and 0 < value <= LARGEST_RANK


def _is_scale(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < LARGEST_SCALE


def _are_names(values: Iterable[Any]) -> bool:
    """Whether all are names of modules: a regular expression could match without end."""
    return all(isinstance(value, str) and MODULE.fullmatch(value) for value in values)


def _foreign_matrix(path: Path) -> str:
    """The first tensor that is no matrix of LoRA, which combining would drop; empty where there is none."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as tensors:
            foreign = next((name for name in tensors.keys() if not MATRIX.fullmatch(name)), "")  # noqa: SIM118
    except SafetensorError as fault:
        raise InvalidBaseModel(f"{path}: damaged weights ({fault}); copy the file again.") from fault
    return f"{path.name} holds {foreign}" if foreign else ""
