"""Registering real, tiny models and asking the versions in a process of their own."""

import ast
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.errors import StateUnusable, UnknownVersion, WorkRefused
from tasks.files.digests import model_digest
from tasks.registry import packaging, smoke_test, versions
from tasks.registry.client import connect

ROWS = [{"instruction": "Cancel the order, please.", "input": "A-1"}, {"instruction": "Where is it?"}]
NAME = "support-desk"


@pytest.fixture(scope="module")
def registered(registry, tiny_base, tiny_adapter, tmp_path_factory):
    """The base, an adapter and a merged version in one store: (uri, run, adapter's version)."""
    uri, run = registry
    card = tmp_path_factory.mktemp("card") / "card.md"
    card.write_text("# A card")
    versions.register_base(run, "tiny", tiny_base, model_digest(tiny_base))
    config = versions.base_config("models:/base-tiny/1", tiny_base)
    adapter = versions.register_model(
        run, f"{NAME}-adapter", "adapter", tiny_adapter, "a" * 64, {}, model_config=config, max_tokens=12
    )
    merged = versions.register_model(
        run,
        NAME,
        "full",
        tiny_base,
        "b" * 64,
        {"data": "d"},
        "For tests",
        {"system": "Be brief."},
        12,
        0.0,
        {"card": card},
    )
    return uri, run, adapter, merged


def directly(base: Path, rows, adapter: Path | None = None, system: str = "", tokens: int = 12) -> list[str]:
    """One prompt at a time through transformers, without padding."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter) if adapter else model
    answers = []
    for row in rows:
        text = row["instruction"] + (f"\n\n{row['input']}" if "input" in row else "")
        messages = [{"role": "system", "content": system}] * bool(system) + [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        output = model.eval().generate(**prompt, do_sample=False, max_new_tokens=tokens)
        answers.append(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
    return answers


def test_registering_the_same_content_twice_gives_one_version(registered, tiny_base):
    uri, run, _, merged = registered
    assert versions.register_model(run, NAME, "full", tiny_base, "b" * 64, {}) == merged == 1
    assert len(connect(uri).search_model_versions(f"name = '{NAME}'")) == 1


def test_a_version_carries_its_files_tags_and_requirements(registered, tiny_base):
    uri, _, _, merged = registered
    found = connect(uri).get_model_version(NAME, str(merged))
    assert found.description == "For tests"
    assert found.tags.items() >= {"kind": "full", "data": "d", "digest": "b" * 64}.items()
    assert found.tags["model"] == model_digest(tiny_base)
    folder = versions.version_folder(uri, NAME, merged, Path("unused"))
    assert (folder / "artifacts/card.md").read_text() == "# A card"
    needed = (folder / "requirements.txt").read_text()
    assert "torch==" in needed and "+cpu" not in needed
    assert not list(folder.rglob("*.pkl"))


def test_the_weights_of_a_version_are_read_in_place_byte_for_byte(registered, tiny_base, tmp_path):
    uri, _, _, merged = registered
    folder = versions.model_folder(uri, NAME, merged, tmp_path / "cache")
    assert (folder / "model.safetensors").read_bytes() == (tiny_base / "model.safetensors").read_bytes()
    assert not folder.is_relative_to(tmp_path)


def test_a_full_version_answers_as_transformers_does(registered, tiny_base, tmp_path):
    uri, _, _, merged = registered
    got = smoke_test.ask(uri, NAME, merged, ROWS, tmp_path)
    assert got == directly(tiny_base, ROWS, system="Be brief.")
    assert all(got)


def test_an_adapter_version_answers_as_base_plus_adapter(registered, tiny_base, tiny_adapter, tmp_path):
    uri, _, adapter, _ = registered
    got = smoke_test.ask(uri, f"{NAME}-adapter", adapter, ROWS, tmp_path)
    assert got == directly(tiny_base, ROWS, tiny_adapter)
    assert got != directly(tiny_base, ROWS)


def test_an_adapter_refuses_another_base_and_names_both_digests(registered, tiny_base, tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    uri, _, adapter, _ = registered
    other = shutil.copytree(tiny_base, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    monkeypatch.setenv("BASE_MODEL", str(other))
    with pytest.raises(WorkRefused) as refused:
        smoke_test.ask(uri, f"{NAME}-adapter", adapter, ROWS, tmp_path)
    assert model_digest(other) in str(refused.value)
    assert model_digest(tiny_base) in str(refused.value)


def test_a_version_that_answers_too_late_is_refused(registered, tmp_path):
    uri, _, _, merged = registered
    with pytest.raises(WorkRefused, match="within 0 s"):
        smoke_test.ask(uri, NAME, merged, ROWS, tmp_path, timeout=0.3)


def test_a_copy_left_by_a_crash_before_the_version_is_used_and_not_made_again(registered, tiny_base, monkeypatch):
    uri, run, _, _ = registered
    with monkeypatch.context() as patch:
        patch.setattr(versions, "_create_version", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            versions.register_model(run, "torn", "full", tiny_base, "c" * 64, {})
    assert versions.register_model(run, "torn", "full", tiny_base, "c" * 64, {}) == 1
    copies = connect(uri).search_logged_models([run.experiment_id], filter_string="name = 'torn'")
    assert len(copies) == 1


@pytest.mark.parametrize("step", ["requirements", "log_model_artifacts"])
def test_a_half_made_copy_is_made_anew(registered, tiny_base, monkeypatch, step):
    from mlflow import MlflowClient

    uri, run, _, _ = registered
    name = f"half-{step[0]}"
    with monkeypatch.context() as patch:
        place = packaging if step == "requirements" else MlflowClient
        patch.setattr(place, step, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            versions.register_model(run, name, "full", tiny_base, "d" * 64, {})
    assert versions.register_model(run, name, "full", tiny_base, "d" * 64, {}) == 1
    copies = connect(uri).search_logged_models([run.experiment_id], filter_string=f"name = '{name}'")
    assert [str(copy.status) for copy in copies] == ["READY"]


def test_no_room_for_the_copies_is_said_before_anything_is_copied(registered, tiny_base, monkeypatch):
    _, run, _, _ = registered
    monkeypatch.setattr(packaging.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(StateUnusable, match="registering needs"):
        versions.register_model(run, "large", "full", tiny_base, "e" * 64, {})


def test_an_unknown_version_is_named(registered, tmp_path):
    uri = registered[0]
    with pytest.raises(UnknownVersion, match="77"):
        versions.model_folder(uri, NAME, 77, tmp_path)


def test_the_file_in_a_version_imports_nothing_of_ours():
    tree = ast.parse(packaging.SERVE_MODEL.read_text("utf-8"))
    names = {each.module for each in ast.walk(tree) if isinstance(each, ast.ImportFrom)}
    names |= {alias.name for each in ast.walk(tree) if isinstance(each, ast.Import) for alias in each.names}
    allowed = {"mlflow", "pandas", "torch", "transformers", "peft", "huggingface_hub", *sys.stdlib_module_names}
    assert "transformers" in names and {name.split(".")[0] for name in names} <= allowed


def test_the_tie_is_written_on_both_versions(registered):
    uri, _, adapter, merged = registered
    versions.tie(uri, NAME, merged, f"{NAME}-adapter", adapter)
    assert connect(uri).get_model_version(NAME, str(merged)).tags["adapter"] == f"{NAME}-adapter/{adapter}"
    assert connect(uri).get_model_version(f"{NAME}-adapter", str(adapter)).tags["merged"] == f"{NAME}/{merged}"


QUESTIONS = """
import json, sys
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1])
def attempt(rows, **params):
    try:
        return model.predict(rows, params=params)
    except Exception as fault:
        return str(fault)
turn = [{"messages": [{"role": "user", "content": "Where is it?"}]}]
full = attempt(turn)
stop = next(character for character in full[0] if character.isascii() and character.isalpha())
print(json.dumps({
    "messages": full,
    "instruction": attempt([{"instruction": "Where is it?"}]),
    "short": attempt(turn, max_tokens=2),
    "stop": stop,
    "stopped": attempt(turn, stop=[stop]),
    "seeded": [attempt(turn, temperature=1.0, seed=7) for _ in range(2)],
    "other": attempt(turn, temperature=1.0, seed=8),
    "empty": attempt([]),
    "wrong": attempt([{"input": "only"}]),
    "long": attempt([{"instruction": "order " * 300}]),
}))
"""


def test_a_version_takes_messages_parameters_and_says_what_is_wrong(registered, tmp_path):
    uri, _, _, merged = registered
    folder = versions.version_folder(uri, NAME, merged, tmp_path)
    done = subprocess.run(
        [sys.executable, "-I", "-c", QUESTIONS, str(folder)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    got = json.loads(done.stdout.splitlines()[-1])
    assert got["messages"] == got["instruction"] and len(got["messages"][0]) > 5
    assert got["messages"][0].startswith(got["short"][0]) and got["short"] != got["messages"]
    text = got["messages"][0]
    assert got["stopped"][0] == text[: text.find(got["stop"])]
    assert got["seeded"][0] == got["seeded"][1] != got["other"]
    assert "No rows" in got["empty"]
    assert "Row 1 needs 'messages'" in got["wrong"]
    assert "tokens; this model reads fewer than 512" in got["long"]


def test_a_base_folder_that_is_a_link_is_registered(registry, tiny_base, tmp_path):
    _, run = registry
    link = tmp_path / "linked-base"
    link.symlink_to(tiny_base)
    assert versions.register_base(run, "linked", link, model_digest(tiny_base)) == 1
