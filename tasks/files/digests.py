"""Digests of values, files and model folders: sha256 of bytes and of names inside a folder, never of paths.

A model folder's identity is everything at its top level that loading may read: weights, config, generation config,
tokenizer and chat templates. `mlflow/serve_model.py` has the same rule again, because a version stands alone.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks.errors import InvalidBaseModel
from tasks.files.known_digests import file_digest, known_digest

WEIGHTS = "*.safetensors"
DESCRIBING = ("*.json", "*.jinja", "*.model", "*.txt", "*.codes", "*.tokenizer", "*.tiktoken", "*.py")
"""Config, generation config, tokenizer, templates and, where a base may run it, code."""
TEMPLATES = "additional_chat_templates/*.jinja"


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON, 64 hex digits.

    >>> digest({"b": 1, "a": [2, "x"]}) == digest({"a": (2, "x"), "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=plain)
    # A file name that is not UTF-8 comes with halves of surrogate pairs.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def plain(value: Any) -> Any:
    """A record as JSON has it; raises TypeError for a path, which is never part of a digest."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        raise TypeError(f"{value}: a path is never part of a digest; give the digest of the bytes behind it")
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


def files_digest(files: Mapping[str, Path]) -> str:
    """One digest for several files by name: names and bytes count, places do not. Raises ValueError for no files."""
    return digest_of_files({name: file_digest(path) for name, path in files.items()})


def digest_of_files(digests: Mapping[str, str]) -> str:
    """One digest for the digests of several files by name; raises ValueError for none: it would equal any other."""
    if not digests:
        raise ValueError("the digest of no files says nothing; name at least one file")
    return digest(digests)


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a model folder that loading may read, by their names inside it."""
    patterns = (WEIGHTS, *DESCRIBING, TEMPLATES)
    paths = sorted(path for pattern in patterns for path in folder.glob(pattern) if path.is_file())
    return {path.relative_to(folder).as_posix(): path for path in paths}


def model_digest(folder: Path) -> str:
    """A model folder's identity: the digest of all its `model_files`; of an adapter's folder as of a whole model's.

    Raises InvalidBaseModel where no weights are in it.
    """
    files = model_files(folder)
    check_weights(folder)
    return digest_of_files({name: known_digest(path) for name, path in files.items()})


def describing_digest(folder: Path) -> str:
    """Identity of what describes a model: config, tokenizer and templates, without the weights.

    Raises InvalidBaseModel where nothing of it is there.
    """
    files = {name: path for name, path in model_files(folder).items() if path.suffix != ".safetensors"}
    if not files:
        raise InvalidBaseModel(f"{folder}: no config and no tokenizer, so no model folder.")
    return digest_of_files({name: known_digest(path) for name, path in files.items()})


def weights_digest(folder: Path) -> str:
    """Digest of a folder's weights alone, in name order: whether two folders hold the same numbers.

    Raises InvalidBaseModel where no weights are in it.
    """
    total = hashlib.sha256()
    for path in check_weights(folder):
        total.update(bytes.fromhex(known_digest(path)))
    return total.hexdigest()


def check_weights(folder: Path) -> list[Path]:
    """The safetensors files of a folder, by name; raises InvalidBaseModel where there are none."""
    weights = sorted(path for path in folder.glob(WEIGHTS) if path.is_file())
    if not weights:
        raise InvalidBaseModel(f"{folder}: no weights ({WEIGHTS}); without them it is no model and has no digest.")
    return weights


def holds(folder: Path, wanted: str) -> bool:
    """Whether a model folder's bytes are those of a digest.

    Versions that were registered before config and tokenizer counted carry a digest of the weights alone, an adapter's
    one of its weights and `origin.json`. No digest of one rule can be that of another, so these hold as well.
    """
    if wanted == model_digest(folder):
        return True
    weights, origin = weights_digest(folder), folder / "origin.json"
    return wanted == weights or (origin.is_file() and wanted == digest([weights, file_digest(origin)]))


@contextmanager
def unchanged(folder: Path, wanted: str) -> Iterator[None]:
    """Read a model folder within this: raises InvalidBaseModel where it does not hold its digest before or after."""
    _check(folder, wanted, "before it was read")
    yield
    _check(folder, wanted, "while it was read")


def _check(folder: Path, wanted: str, when: str) -> None:
    if not holds(folder, wanted):
        raise InvalidBaseModel(
            f"{folder}: its files changed {when}: their digest is {model_digest(folder)}, expected was {wanted}. "
            "Nothing made of it is kept as finished; start again when nobody writes there."
        )
