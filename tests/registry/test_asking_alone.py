"""A version's own code is asked apart: without secrets, without leaving traces, and within the version's folder."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tasks.errors import InvalidBaseModel, ServiceUnavailable, UnknownVersion, WorkRefused
from tasks.registry import contents, packaging, smoke_test, versions

ROWS = [{"instruction": "Where is it?"}]
SECRETS = {
    "HF_TOKEN": "hf_secret",
    "AWS_SECRET_ACCESS_KEY": "aws-secret",
    "PREFECT_API_KEY": "prefect-secret",
    "PREFECT_API_URL": "http://user:prefect-secret@host/api",
    "MLFLOW_TRACKING_USERNAME": "secret-user",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-secret",
    "MLFLOW_TRACKING_TOKEN": "mlflow-secret",
    "POSTGRES_PASSWORD": "db-secret",
    "OPENAI_API_KEY": "sk-secret",
    "https_proxy": "http://user:proxy-secret@proxy:3128",
}
REVISION = "0123456789abcdef0123456789abcdef01234567"
Register = Callable[..., int]


@pytest.fixture
def register(registry, tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> Register:
    """Register the tiny base as a full model whose code does something more when it is loaded."""
    number = iter(range(1000))

    def make(name: str, code: str = "", folder: Path = tiny_base, kind: str = "full", **config: object) -> int:
        with monkeypatch.context() as patch:
            served = folder.parent / f"serve-{name}" / "serve_model.py"
            served.parent.mkdir()
            served.write_text(f"{packaging.SERVE_MODEL.read_text('utf-8')}\n{code}\n", "utf-8")
            for module in (packaging, contents):
                patch.setattr(module, "SERVE_MODEL", served)
            content = f"{next(number):064d}{name}"
            return versions.register_model(registry[1], name, kind, folder, content, {}, model_config=config)

    return make


def test_a_versions_code_sees_no_secret_and_nothing_of_the_registry(
    register, registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "environment.json"
    version = register("curious", f"import json; Path({str(marker)!r}).write_text(json.dumps(dict(os.environ)))")
    marker.unlink()  # MLflow runs the file when it logs it
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    assert smoke_test.ask(registry[0], "curious", version, ROWS, tmp_path)
    environment = json.loads(marker.read_text("utf-8"))
    assert "secret" not in str(environment)
    assert not [name for name in environment if name.startswith(("MLFLOW_TRACKING", "PREFECT_", "AWS_"))]
    assert not SECRETS.keys() & environment.keys()
    assert environment["PATH"] == os.environ["PATH"]
    assert environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false" and environment["HF_HUB_OFFLINE"] == "1"


def test_asking_leaves_the_artifact_store_as_it_was(register, registry, tmp_path: Path) -> None:
    version = register("tidy")
    folder = versions.version_folder(registry[0], "tidy", version, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    smoke_test.ask(registry[0], "tidy", version, ROWS, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize("address", ["../../../..", "/etc", "artifacts/../.."])
def test_a_version_whose_weights_lie_outside_of_it_is_refused(register, registry, tmp_path: Path, address: str) -> None:
    name = f"leads-out-{len(address)}"
    version = register(name)
    folder = versions.version_folder(registry[0], name, version, tmp_path)
    described = yaml.safe_load((folder / "MLmodel").read_text("utf-8"))
    described["flavors"]["python_function"]["artifacts"]["model"]["path"] = address
    (folder / "MLmodel").write_text(yaml.safe_dump(described), "utf-8")
    with pytest.raises(UnknownVersion, match="outside of it"):
        contents.weights_in(folder)
    for attempt in (versions.model_folder, lambda *given: smoke_test.ask(*given[:3], ROWS, given[3])):
        with pytest.raises(WorkRefused, match=r"MLmodel, .* is not what was registered"):
            attempt(registry[0], name, version, tmp_path)


@pytest.mark.parametrize("link", ["artifacts/model.link", "artifacts/card.md", "artifacts/{model}/extra.json"])
def test_a_link_that_leads_out_of_a_version_is_refused(register, registry, tmp_path: Path, link: str) -> None:
    name = f"linked-{len(link)}"
    version = register(name)
    folder = versions.version_folder(registry[0], name, version, tmp_path)
    place = folder / link.format(model=contents.weights_in(folder).name)
    place.symlink_to("/etc/hostname")
    with pytest.raises(UnknownVersion, match="outside of it"):
        contents.weights_in(folder)
    with pytest.raises(WorkRefused, match=r"outside of it|not what was registered"):
        versions.model_folder(registry[0], name, version, tmp_path)


def test_the_hubs_base_of_an_adapter_is_fetched_before_its_version_is_asked(
    register, registry, tiny_base: Path, tiny_adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    cached = tmp_path / "hub" / "models--org--tiny"
    shutil.copytree(tiny_base, cached / "snapshots" / REVISION)
    config = versions.base_config(f"org/tiny@{REVISION}", tiny_base)
    version = register("bound", folder=tiny_adapter, kind="adapter", **config)
    with pytest.raises(ServiceUnavailable, match="org/tiny"):
        smoke_test.ask(registry[0], "bound", version, ROWS, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert smoke_test.ask(registry[0], "bound", version, ROWS, tmp_path)


def test_a_pickled_adapter_is_not_registered(
    register, registry, tiny_base: Path, tiny_adapter: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_adapter, tmp_path / "pickled"))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(InvalidBaseModel, match="safetensors"):
        register("pickled", folder=folder, kind="adapter", **versions.base_config(str(tiny_base), tiny_base))
