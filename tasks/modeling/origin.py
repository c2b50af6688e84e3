"""A folder of trained weights in, what they are bound to out."""

from pathlib import Path
from typing import Any

from tasks.files.model_files import json_object

ORIGIN = "origin.json"
ADAPTER_CONFIG = "adapter_config.json"


def origin_of(weights: Path) -> dict[str, Any]:
    """What saved weights are bound to: base (digest, name, revision, quantisation), tokenizer, template, system.

    Raises InvalidBaseModel where the folder does not say.
    """
    return json_object(weights / ORIGIN)


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, and not a model that loads by itself."""
    return (folder / ADAPTER_CONFIG).is_file()
