"""A folder of model or adapter files in, what loading it would read and run out; what is not declared is refused."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import InvalidBaseModel

CONFIG = "config.json"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
VOCABULARIES = ("tokenizer.json", "vocab.json", INDEX)
"""Large files that no library takes a class name from."""
LARGEST_CONFIG = 16 << 20
PICKLED = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
GENERATION_CODE = "custom_generate"
OTHER_REPOSITORY = "--"
"""Between a repository and a class in an `auto_map`: the code lies there and not in the folder."""
KERNEL = "a compiled kernel of a hub, which is not fetched"
ELSEWHERE = {"attn_implementation": KERNEL, "_attn_implementation": KERNEL, "experts_implementation": KERNEL}
"""Keys that name code of a repository where their value has a slash."""
TRUST = "set base.trust_remote_code if you trust it"
OBJECTS = (CONFIG, "generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""Files that are read as JSON objects, where they are there."""


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InvalidBaseModel, with the file's name, for anything else."""
    value = _parsed(path, {})
    if not isinstance(value, dict):
        raise InvalidBaseModel(f"{path}: holds a {type(value).__name__}, not a JSON object; copy the file again.")
    return value


def _parsed(path: Path, values: dict[str, list[Any]]) -> Any:
    """A JSON file's content; what the keys of `values` are set to, at any depth, is added to it."""

    def look(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, value in pairs:
            if key in values:
                values[key].append(value)
        return dict(pairs)

    try:
        return json.loads(path.read_text("utf-8"), object_pairs_hook=look)
    except (OSError, ValueError, RecursionError) as fault:
        raise InvalidBaseModel(f"{path}: not readable as JSON ({fault}); copy the file again.") from fault


def code_of(folder: Path) -> list[str]:
    """What makes transformers run Python that comes with a folder, each with its file; empty for plain data.

    Every JSON file counts: which of them is read as a configuration is the library's choice. Raises InvalidBaseModel
    where the code would come from elsewhere (another repository, a kernel of a hub), and for files that are no JSON.
    """
    reasons = [f"the folder {GENERATION_CODE}"] if (folder / GENERATION_CODE).is_dir() else []
    for path in sorted(folder.glob("[!.]*.json")):
        if path.name in VOCABULARIES:
            continue
        if path.stat().st_size > LARGEST_CONFIG:
            raise InvalidBaseModel(f"{path}: larger than any configuration ({LARGEST_CONFIG >> 20} MB); take it away.")
        values: dict[str, list[Any]] = {key: [] for key in ("auto_map", *ELSEWHERE)}
        _parsed(path, values)
        named = [value for value in values["auto_map"] if value]
        if named:
            reasons.append(f"auto_map in {path.name}")
        if OTHER_REPOSITORY in json.dumps(named):
            raise InvalidBaseModel(
                f"{path}: its auto_map names code in another repository; copy that code into the folder and name it "
                "without the repository."
            )
        for key, what in ELSEWHERE.items():
            if foreign := [value for value in values[key] if "/" in json.dumps(value)]:
                raise InvalidBaseModel(f"{path}: {key} is {foreign[0]!r}, {what}; take that key away.")
    return reasons


def check_code(folder: Path, trusted: bool, what: str, advice: str = TRUST) -> None:
    """Raise InvalidBaseModel where a folder brings Python of its own and is not `trusted`, or as `code_of` does.

    `what` and `advice` are for the message.
    """
    if (reasons := code_of(folder)) and not trusted:
        raise InvalidBaseModel(f"{what}: it brings Python of its own ({', '.join(reasons)}); {advice}.")


def loaded_weights(folder: Path, config: Mapping[str, Any]) -> set[str]:
    """The names of the files that transformers reads a model's weights from; empty where it would find none.

    An index counts also beside a file that goes before it: one of the two is a mistake. Raises InvalidBaseModel for an
    index that names no files.
    """
    named = {str(config["transformers_weights"])} if config.get("transformers_weights") else set()
    return {
        file
        for name in named | {name for name in (WHOLE, INDEX) if (folder / name).is_file()}
        for file in (_shards(folder / name) if name.endswith(".index.json") else {name})
    }


def _shards(index: Path) -> set[str]:
    named = json_object(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise InvalidBaseModel(f"{index}: no weight_map of file names; copy the file again.")
    return set(named.values())


def pickled(folder: Path) -> list[str]:
    """The names of files in a folder that hold pickles by their ending: loading one can run code."""
    return sorted(path.name for path in folder.iterdir() if path.suffix in PICKLED)
