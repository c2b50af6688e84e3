"""What a base folder may hold: plain data of one model, and nothing that runs or is loaded unasked."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import InvalidBaseModel
from tasks.files.model_files import VOCABULARIES
from tasks.modeling import base_model
from tasks.modeling.base_model import description, verified
from tasks.prompts import stop_ids
from tasks.recipe.stages import BaseModelRecipe

Change = Callable[[Path], object]
CONFIGURATIONS = ("config.json", "generation_config.json", "tokenizer_config.json")


@pytest.fixture
def copy(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "copy"))


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text, "utf-8")


def setting(name: str, **values: Any) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        content = json.loads(path.read_text("utf-8")) if path.exists() else {}
        path.write_text(json.dumps({**content, **values}), "utf-8")

    return change


def moved(old: str, new: str) -> Change:
    return lambda folder: (folder / old).rename(folder / new)


CODE = {"AutoTokenizer": [None, "own.Tokenizer"]}
RUNS_CODE: dict[str, Change] = {
    "tokenizer": setting("tokenizer_config.json", auto_map=CODE),
    "model": setting("config.json", auto_map={"AutoModelForCausalLM": "own.Model"}),
    "part of a model": setting("config.json", text_config={"auto_map": {"AutoConfig": "own.Config"}}),
    "generation": setting("generation_config.json", auto_map=CODE),
    "processor": setting("processor_config.json", auto_map=CODE),
    "a file of a later version": setting("config.4.0.0.json", auto_map=CODE),
    "an escaped key": write("preprocessor_config.json", '{"auto\\u005fmap": {"AutoProcessor": "own.Processor"}}'),
    "a key that is overwritten": write("extra.json", '{"auto_map": {"AutoConfig": "own.C"}, "auto_map": null}'),
    "custom generation": lambda folder: (folder / "custom_generate").mkdir(),
}


@pytest.mark.parametrize("kind", RUNS_CODE)
def test_python_of_a_base_is_refused_unless_it_is_trusted(copy: Path, kind: str) -> None:
    RUNS_CODE[kind](copy)
    with pytest.raises(InvalidBaseModel, match=r"brings Python of its own .*base\.trust_remote_code"):
        verified(copy, "base")
    with pytest.raises(InvalidBaseModel, match="brings Python of its own"):
        description(BaseModelRecipe(model=str(copy)), copy)
    assert verified(copy, "base", trust_remote_code=True).folder == copy


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setting("config.json", auto_map={"AutoModel": "org/other--modeling.Model"}), "another repository"),
        (setting("config.json", attn_implementation="org/kernel"), r"attn_implementation.*org/kernel.*kernel of a hub"),
        (setting("config.json", text_config={"attn_implementation": {"": "org/kernel@v1"}}), "kernel of a hub"),
    ],
)
def test_code_that_lies_elsewhere_is_refused_even_where_the_base_is_trusted(
    copy: Path, change: Change, words: str
) -> None:
    change(copy)
    with pytest.raises(InvalidBaseModel, match=words):
        verified(copy, "base", trust_remote_code=True)


@pytest.mark.parametrize("name", CONFIGURATIONS)
@pytest.mark.parametrize("text", ["[]", "{", "", "null", "\xff", "[" * 100_000], ids=lambda text: repr(text[:4]))
def test_a_configuration_that_is_no_json_object_is_named(copy: Path, name: str, text: str) -> None:
    (copy / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidBaseModel, match=rf"{name}.*copy the file again"):
        verified(copy, "base")


def test_a_weights_index_that_names_no_files_is_named(copy: Path) -> None:
    for text in ("[]", "{", '{"weight_map": []}', '{"weight_map": {"a": 1}}'):
        (copy / "model.safetensors.index.json").write_text(text)
        with pytest.raises(InvalidBaseModel, match=r"index\.json.*copy the file again"):
            verified(copy, "base")


def test_stop_tokens_are_not_read_from_what_is_no_json_object(copy: Path) -> None:
    (copy / "generation_config.json").write_text("[]")
    with pytest.raises(InvalidBaseModel, match="generation_config"):
        stop_ids(copy)


def test_a_list_in_a_file_that_nobody_reads_is_no_fault(copy: Path) -> None:
    (copy / "modules.json").write_text('[{"idx": 0, "auto_map": {}}]')
    (copy / "._config.json").write_bytes(b"\x00\x05\x16\x07")
    assert verified(copy, "base").folder == copy


def test_a_configuration_too_large_to_be_one_is_refused_and_a_large_vocabulary_is_not(copy: Path) -> None:
    padding = " " * (17 << 20)
    for name in VOCABULARIES[:2]:
        (copy / name).write_text("{}" + padding)
    verified(copy, "base")
    (copy / "processor_config.json").write_text("{}" + padding)
    with pytest.raises(InvalidBaseModel, match="larger than any configuration"):
        verified(copy, "base")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_in_a_base_folder_is_refused(copy: Path, name: str) -> None:
    (copy / name).write_text("{}")
    with pytest.raises(InvalidBaseModel, match=rf"holds an adapter \({name}\).*merge it in or take it away"):
        verified(copy, "base", trust_remote_code=True)


def test_a_config_that_hands_over_to_another_file_is_refused(copy: Path) -> None:
    setting("config.json", configuration_files=["config.4.0.0.json"])(copy)
    shutil.copy(copy / "config.json", copy / "config.4.0.0.json")
    with pytest.raises(InvalidBaseModel, match="configuration_files"):
        verified(copy, "base")


LOADS_OTHER_FILES: dict[str, tuple[Change, str]] = {
    "another name": (moved("model.safetensors", "other.safetensors"), "no weights that transformers loads"),
    "a pickled file that would be read": (
        lambda folder: (
            moved("model.safetensors", "other.safetensors")(folder),
            (folder / "pytorch_model.bin").write_bytes(b"\x80"),
        ),
        r"pytorch_model\.bin.*pickles run code",
    ),
    "a name in the config": (setting("config.json", transformers_weights="away.safetensors"), "away"),
    "a subfolder": (setting("config.json", transformers_weights="sub/model.safetensors"), "sub/model"),
    "an index that leads out": (
        lambda folder: (
            moved("model.safetensors", "other.safetensors")(folder),
            write("model.safetensors.index.json", '{"weight_map": {"a": "../other.safetensors"}}')(folder),
        ),
        r"\.\./other",
    ),
}


@pytest.mark.parametrize("kind", LOADS_OTHER_FILES)
def test_weights_that_are_loaded_are_those_that_are_digested(copy: Path, kind: str) -> None:
    change, words = LOADS_OTHER_FILES[kind]
    change(copy)
    (copy / "sub").mkdir()
    shutil.copy(next(copy.glob("*.safetensors")), copy / "sub" / "model.safetensors")
    with pytest.raises(InvalidBaseModel, match=words):
        verified(copy, "base")


def test_weights_beside_those_that_are_loaded_do_no_harm(copy: Path) -> None:
    shutil.copy(copy / "model.safetensors", copy / "consolidated.safetensors")
    (copy / "pytorch_model.bin").write_bytes(b"\x80")
    assert verified(copy, "base").folder == copy


def test_a_carried_base_is_on_the_disk_before_it_has_its_name(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash of the machine could otherwise leave empty weights under a name that is taken for whole."""
    carried = tmp_path / "carrier"
    carried.mkdir()
    (carried / "__init__.py").touch()
    (carried / "model.gguf").write_bytes(b"packed")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(base_model.CARRIED, "small", base_model.Carried("carrier", "carrier", "model.gguf", "none"))
    monkeypatch.setattr(base_model, "_convert", lambda _, folder: shutil.copytree(tiny_base, folder))
    on_the_disk: set[int] = set()
    named: list[set[int]] = []
    real, rename = os.fsync, Path.rename
    monkeypatch.setattr(os, "fsync", lambda file: on_the_disk.add(os.fstat(file).st_ino) or real(file))
    monkeypatch.setattr(Path, "rename", lambda path, to: named.append(set(on_the_disk)) or rename(path, to))
    folder = base_model.fetch_carried("small", tmp_path / "bases")
    assert {path.stat().st_ino for path in folder.iterdir()} <= named[0]
