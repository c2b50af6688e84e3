"""Trained weights in, a folder that stands for them out: safetensors, tokenizer, and what they are bound to."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.modeling.loading import stops_as_scored
from tasks.modeling.origin import ORIGIN


def keep_start(model: Any, folder: Path) -> Path | None:
    """Save an adapter as PiSSA starts it, before the first step; None where a plain adapter starts from nothing.

    PiSSA takes the weights' largest part out of the base. With its start known, the saved adapter can be the
    difference to it: a plain LoRA of twice the rank on the base as it is, that nobody has to take apart again.
    """
    configs = getattr(model, "peft_config", {}).values()
    if not any(getattr(config, "init_lora_weights", None) == "pissa" for config in configs):
        return None
    model.save_pretrained(folder)
    return folder


def save(
    model: Any,
    tokenizer: Path,
    folder: Path,
    origin: Mapping[str, Any],
    start: Path | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Write the adapter, or the whole model, with its tokenizer and template, and `origin.json`.

    `start` is what `keep_start` gave.
    """
    from transformers import AutoTokenizer

    own_tokenizer = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=trust_remote_code)
    model.config.use_cache = True
    if hasattr(model, "peft_config"):
        for config in model.peft_config.values():
            config.base_model_name_or_path = origin.get("base_name")
            config.revision = origin.get("base_revision") or None
            for name, value in vars(config).items():
                # PEFT writes a set in an order that differs by process, and the same training has the same bytes.
                if isinstance(value, set):
                    setattr(config, name, sorted(value))
        model.save_pretrained(
            folder, save_embedding_layers=False, path_initial_model_for_weight_conversion=str(start) if start else None
        )
    else:
        stops_as_scored(model, own_tokenizer)
        model.save_pretrained(folder)
    own_tokenizer.save_pretrained(folder)
    (folder / ORIGIN).write_text(json.dumps(dict(origin), indent=1), "utf-8")
