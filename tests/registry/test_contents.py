"""Registered bytes against the digests in their tags, in a store that tests spoil."""

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.errors import InvalidBaseModel, StateUnusable, UnknownVersion, WorkRefused
from tasks.files import known_digests
from tasks.files.digests import digest, model_digest, weights_digest
from tasks.files.known_digests import file_digest
from tasks.registry import contents, lookup, packaging, smoke_test, versions
from tasks.registry.client import connect

ROWS = [{"instruction": "Where is it?"}]
NAME = "spoilt"


@pytest.fixture(scope="module")
def registered(registry, tiny_base, tmp_path_factory):
    """(tracking_uri, run, version's folder); each test puts back what it spoils."""
    uri, run = registry
    release = tmp_path_factory.mktemp("release") / "release.json"
    release.write_text("{}")
    versions.register_model(run, NAME, "full", tiny_base, "1" * 64, {}, extra_files={"release": release})
    return uri, run, versions.version_folder(uri, NAME, 1, Path("unused"))


@pytest.fixture
def spoilt(registered, tmp_path):
    """Change one file of the version for the length of a test."""
    _, _, folder = registered
    kept = shutil.copytree(folder, tmp_path / "kept")

    def spoil(name: str) -> None:
        path = folder / name
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)

    yield spoil
    shutil.rmtree(folder)
    kept.rename(folder)


def test_a_version_carries_digests_of_its_model_and_of_what_lies_beside_it(registered, tiny_base):
    uri, _, folder = registered
    tags = lookup.find(uri, NAME, version=1).tags
    assert tags["model"] == model_digest(tiny_base)
    assert tags["package"] == contents.package_digest(folder)


@pytest.mark.parametrize(
    "name",
    [
        "artifacts/tiny-base/model.safetensors",
        "artifacts/tiny-base/config.json",
        "artifacts/tiny-base/generation_config.json",
        "artifacts/tiny-base/chat_template.jinja",
        "artifacts/release.json",
        "serve_model.py",
        "MLmodel",
    ],
)
def test_a_version_with_one_other_bit_is_neither_read_nor_asked(registered, spoilt, tmp_path, name):
    uri, _, folder = registered
    versions.checked_folder(uri, NAME, 1, tmp_path / "cache")
    name = name.replace("tiny-base", contents.weights_in(folder).name)
    spoilt(name)
    for use in (
        lambda: versions.model_folder(uri, NAME, 1, tmp_path / "cache"),
        lambda: smoke_test.ask(uri, NAME, 1, ROWS, tmp_path / "cache"),
    ):
        with pytest.raises(WorkRefused, match=rf"{NAME}/1 .*registered"):
            use()
    spoilt(name)
    assert versions.model_folder(uri, NAME, 1, tmp_path / "cache") == contents.weights_in(folder)


def test_a_file_that_was_added_to_a_model_is_noticed(registered, spoilt, tmp_path):
    uri, _, folder = registered
    (contents.weights_in(folder) / "adapter_config.json").write_text("{}")
    with pytest.raises(WorkRefused, match="other bytes than were registered"):
        versions.model_folder(uri, NAME, 1, tmp_path)


def test_a_version_without_weights_is_refused(registered, spoilt, tmp_path):
    uri, _, folder = registered
    (contents.weights_in(folder) / "model.safetensors").unlink()
    with pytest.raises(WorkRefused, match="no weights"):
        versions.model_folder(uri, NAME, 1, tmp_path)


def test_what_this_machine_has_read_is_not_read_again(registered, tmp_path, monkeypatch):
    uri, _, folder = registered
    time.sleep(0.1)  # as old as any version that another process reads
    versions.model_folder(uri, NAME, 1, tmp_path)
    monkeypatch.setattr(known_digests, "_known", {})
    monkeypatch.setattr(known_digests, "file_digest", lambda path: pytest.fail(f"{path} was read again"))
    assert versions.model_folder(uri, NAME, 1, tmp_path) == contents.weights_in(folder)


def test_a_known_version_is_checked_without_importing_mlflow(registered, tmp_path):
    import subprocess
    import sys

    uri, _, folder = registered
    versions.model_folder(uri, NAME, 1, tmp_path)
    script = (
        "import sys\nfrom pathlib import Path\nfrom tasks.registry import versions\n"
        f"print(versions.model_folder({uri!r}, {NAME!r}, 1, Path({str(tmp_path)!r})), 'mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(contents.weights_in(folder)), "False"]


def test_a_version_of_another_program_is_refused_for_want_of_a_digest(registered, tmp_path):
    uri, run, folder = registered
    client = connect(uri)
    client.create_registered_model("foreign")
    client.create_model_version("foreign", str(folder), run.run_id)
    with pytest.raises(WorkRefused, match=r"foreign/1 .*carries no digest of its files"):
        versions.model_folder(uri, "foreign", 1, tmp_path)
    with pytest.raises(UnknownVersion, match=r"foreign/2"):
        versions.model_folder(uri, "foreign", 2, tmp_path)


@pytest.mark.parametrize("kind", ["full", "base", "adapter"])
def test_versions_whose_tags_are_of_the_weights_alone_still_hold(registered, tiny_base, tiny_adapter, tmp_path, kind):
    uri, run, _ = registered
    source = shutil.copytree(tiny_adapter if kind == "adapter" else tiny_base, tmp_path / kind)
    (source / "origin.json").write_text("{}")
    name, weights = f"older-{kind}", weights_digest(source)
    bound = digest([weights, file_digest(source / "origin.json")])
    versions.register_model(run, name, kind, source, weights, {})
    client = connect(uri)
    client.delete_model_version_tag(name, "1", "package")
    if kind == "base":
        client.delete_model_version_tag(name, "1", "model")
    else:
        tag = "weights" if kind == "adapter" else "model"
        client.set_model_version_tag(name, "1", tag, bound if kind == "adapter" else weights)
    folder = versions.model_folder(uri, name, 1, tmp_path / "cache")
    weights_file = next(folder.glob("*.safetensors"))
    weights_file.write_bytes(weights_file.read_bytes()[:-1] + b"x")
    with pytest.raises(WorkRefused, match="other bytes"):
        versions.model_folder(uri, name, 1, tmp_path / "cache")


def test_a_folder_that_changed_since_its_digest_was_taken_is_not_registered(registered, tiny_base, tmp_path):
    uri, run, _ = registered
    source = shutil.copytree(tiny_base, tmp_path / "source")
    wanted = model_digest(source)
    (source / "generation_config.json").write_text("{}")
    with pytest.raises(StateUnusable, match=f"expected was {wanted}.*run again"):
        versions.register_model(run, "changed", "full", source, "2" * 64, {"model": wanted})
    assert lookup.find(uri, "changed", version=1) is None
    with pytest.raises(StateUnusable, match=f"expected was {wanted}"):
        versions.register_base(run, "changed", source, wanted)


def test_a_folder_without_weights_is_not_registered(registered, tiny_base, tmp_path):
    uri, run, _ = registered
    source = shutil.copytree(tiny_base, tmp_path / "source", ignore=shutil.ignore_patterns("*.safetensors"))
    with pytest.raises(InvalidBaseModel, match="no weights"):
        versions.register_model(run, "empty", "full", source, "3" * 64, {})
    assert lookup.find(uri, "empty", version=1) is None


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer_config.json", "release.json"])
def test_a_copy_that_landed_with_other_bytes_is_taken_back_and_made_again(
    registered, tiny_base, tmp_path, monkeypatch, name
):
    uri, run, _ = registered
    real: Callable[..., None] = packaging._copy
    (tmp_path / "release.json").write_text('{"name": "landed"}')

    def torn(*given) -> None:
        real(*given)
        (path,) = packaging.local_folder(given[2].artifact_location).rglob(name)
        path.write_bytes(path.read_bytes()[:-1] + b" ")

    def register() -> int:
        extra = {"release": tmp_path / "release.json"}
        return versions.register_model(run, f"landed-{len(name)}", "full", tiny_base, "4" * 64, {}, extra_files=extra)

    with monkeypatch.context() as patch:
        patch.setattr(packaging, "_copy", torn)
        with pytest.raises(StateUnusable, match=rf"{name} landed there with other bytes"):
            register()
    assert lookup.find(uri, f"landed-{len(name)}", version=1) is None
    assert register() == 1
    folder = versions.checked_folder(uri, f"landed-{len(name)}", 1, tmp_path / "cache")
    assert json.loads((folder / "artifacts/release.json").read_text()) == {"name": "landed"}


def test_a_copy_is_on_the_disk_before_the_database_has_a_version_of_it(run, tiny_base, monkeypatch):
    on_the_disk: set[int] = set()
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda open_file: on_the_disk.add(os.fstat(open_file).st_ino) or real(open_file))
    kept: list[set[int]] = []
    make = versions._create_version
    monkeypatch.setattr(versions, "_create_version", lambda *told: kept.append(set(on_the_disk)) or make(*told))
    versions.register_model(run, "synced", "full", tiny_base, "2" * 64, {})
    folder = versions.version_folder(run.tracking_uri, "synced", 1, Path("unused"))
    assert {path.stat().st_ino for path in folder.rglob("*")} <= kept[0]


def test_the_advice_for_a_version_without_files_helps(run, tiny_base, tmp_path):
    uri, content = run.tracking_uri, "3" * 64
    versions.register_model(run, "emptied", "full", tiny_base, content, {})
    shutil.rmtree(versions.version_folder(uri, "emptied", 1, tmp_path))
    with pytest.raises(UnknownVersion, match=r"files are gone from .*delete the version in MLflow"):
        versions.checked_folder(uri, "emptied", 1, tmp_path)
    assert versions.register_model(run, "emptied", "full", tiny_base, content, {}) == 1, "found, so not made again"
    connect(uri).delete_model_version("emptied", "1")
    made = versions.register_model(run, "emptied", "full", tiny_base, content, {})
    assert versions.checked_folder(uri, "emptied", made, tmp_path).is_dir()
