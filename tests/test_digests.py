"""What identifies a model folder, and what does not."""

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import InvalidBaseModel
from tasks.files.digests import describing_digest, digest, files_digest, holds, model_digest, unchanged, weights_digest
from tasks.files.known_digests import file_digest
from tasks.modeling import base_model
from tasks.modeling.base_model import resolve
from tasks.recipe.stages import BaseModelRecipe

SERVE_MODEL = Path(__file__).parents[1] / "mlflow" / "serve_model.py"


@pytest.fixture(scope="module")
def served() -> Any:
    """The module that every version carries."""
    found = importlib.util.spec_from_file_location("serve_model", SERVE_MODEL)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture
def base(tiny_base: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def key(name: str, **values: Any) -> Callable[[Path], None]:
    """Change keys of a JSON file."""

    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text("utf-8"))
        (folder / name).write_text(json.dumps(content | values), "utf-8")

    return change


def file(name: str, content: bytes = b"{}") -> Callable[[Path], None]:
    """Add a file, or write another into its place."""

    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return change


def one_bit(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


CHANGES = {
    "weights": one_bit,
    "layers": key("config.json", num_hidden_layers=1),
    "norm": key("config.json", rms_norm_eps=0.5),
    "positions": key("config.json", rope_theta=5e5),
    "stop tokens": key("generation_config.json", eos_token_id=7),
    "tokenizer": key("tokenizer_config.json", model_max_length=77),
    "vocabulary": file("tokenizer.model", b"pieces"),
    "word list": file("vocab.txt", b"words"),
    "template": file("chat_template.jinja", b"{{ messages[0]['content'] }}"),
    "named template": file("additional_chat_templates/tools.jinja", b"{{ tools }}"),
    "code": file("modeling_own.py", b"x = 1\n"),
    "adapter": file("adapter_config.json"),
}
NO_CHANGES = {
    "description": file("README.md", b"# A model"),
    "files in folders": file("onnx/config.json"),
    "pickle": file("pytorch_model.bin", b"not loaded"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_every_file_that_loading_may_read_is_part_of_a_models_identity(base, served, change):
    before = model_digest(base)
    CHANGES[change](base)
    assert model_digest(base) != before
    assert served.model_digest(base) == model_digest(base)


@pytest.mark.parametrize("change", NO_CHANGES)
def test_files_that_loading_never_reads_are_no_part_of_it(base, served, change):
    before = model_digest(base)
    NO_CHANGES[change](base)
    assert model_digest(base) == served.model_digest(base) == before


def test_the_same_files_elsewhere_have_the_same_digest(base, tiny_base, tmp_path, served):
    link = tmp_path / "link"
    link.symlink_to(base)
    assert model_digest(base) == model_digest(tiny_base) == model_digest(link) == served.model_digest(link)


def test_config_and_tokenizer_without_weights_have_an_identity_of_their_own(base):
    before = describing_digest(base)
    one_bit(base)
    assert describing_digest(base) == before
    CHANGES["norm"](base)
    assert describing_digest(base) != before


@pytest.mark.parametrize("taken", [model_digest, weights_digest])
def test_a_folder_without_weights_has_no_digest(base, served, taken):
    (base / "model.safetensors").rename(base / "adapter_model.bin")
    with pytest.raises(InvalidBaseModel, match="no weights"):
        taken(base)
    with pytest.raises(ValueError, match="no weights"):
        served.model_digest(base)


def test_no_files_have_no_digest():
    with pytest.raises(ValueError, match="no files"):
        files_digest({})


def test_a_file_that_changes_within_one_process_is_read_again(base):
    before = model_digest(base)
    one_bit(base)
    other = model_digest(base)
    one_bit(base)
    assert other != before == model_digest(base)


def test_digests_of_versions_before_config_counted_still_hold(base):
    (base / "origin.json").write_text("{}")
    weights = weights_digest(base)
    older = [weights, digest([weights, file_digest(base / "origin.json")])]
    assert all(holds(base, each) for each in [*older, model_digest(base)])
    one_bit(base)
    assert not any(holds(base, each) for each in older)


def test_a_folder_that_changes_while_it_is_read_is_refused(base):
    wanted = model_digest(base)
    with unchanged(base, wanted):
        pass
    with pytest.raises(InvalidBaseModel, match=f"while it was read.*{wanted}"), unchanged(base, wanted):
        CHANGES["norm"](base)
    with pytest.raises(InvalidBaseModel, match="before it was read"), unchanged(base, wanted):
        pytest.fail("read all the same")


HUB = [
    "README.md", "config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer.model", "vocab.txt", "chat_template.jinja", "additional_chat_templates/tools.jinja", "modeling_own.py",
    "pytorch_model.bin", "onnx/config.json", "onnx/model.safetensors", "original/params.json",
]  # fmt: skip


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_base: Path) -> Path:
    """A snapshot folder that a hub download fills with the files that it was asked for, by the hub's own rule."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    folder = tmp_path / "snapshot"

    def download(name: str, revision: str | None = None, **patterns: Any) -> str:
        for path in filter_repo_objects(HUB, **patterns):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            known = tiny_base / path.replace("-00001-of-00001", "")
            (folder / path).write_bytes(
                known.read_bytes()
                if known.is_file()
                else b'{"weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}'
            )
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return folder


def test_a_hub_download_fetches_the_files_of_the_identity_and_no_others(hub, served):
    found = resolve(BaseModelRecipe(model="org/name"), hub.parent)
    fetched = {path.relative_to(hub).as_posix() for path in hub.rglob("*") if path.is_file()}
    assert fetched == {path for path in HUB if path not in ("README.md", "pytorch_model.bin")} - {
        "onnx/config.json", "onnx/model.safetensors", "original/params.json",
    }  # fmt: skip
    shutil.rmtree(hub)
    assert served.base_folder("org/name", found.digest) == str(hub)
    assert {path.relative_to(hub).as_posix() for path in hub.rglob("*") if path.is_file()} == fetched


def test_what_describes_a_hub_model_is_fetched_without_its_weights(hub):
    base_model.description(BaseModelRecipe(model="org/name"), hub.parent)
    fetched = {path.relative_to(hub).as_posix() for path in hub.rglob("*") if path.is_file()}
    assert "chat_template.jinja" in fetched and "additional_chat_templates/tools.jinja" in fetched
    assert not any(name.endswith(".safetensors") for name in fetched)
