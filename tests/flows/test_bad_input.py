"""Bad input of each kind: a clear message, the right exit code, and nothing half-made."""

import gzip
import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoTokenizer

from flows.cli.main import run
from flows.preflight import preflight
from tasks.recipe.stages import BaseModelRecipe
from tests.modeling.architectures import base_of

Change = Callable[[Any, dict[str, Any]], None]


def source(name: str, content: bytes | None) -> Change:
    def change(shop: Any, recipe: dict[str, Any]) -> None:
        recipe["data"]["train"] = [str(shop.home / name)]
        if content is not None:
            (shop.home / name).write_bytes(content)

    return change


def setting(key: str, value: Any) -> Change:
    def change(shop: Any, recipe: dict[str, Any]) -> None:
        *parts, last = key.split(".")
        inside = recipe
        for part in parts:
            inside = inside[part]
        inside[last] = value

    return change


def policy(text: str) -> Change:
    def change(shop: Any, recipe: dict[str, Any]) -> None:
        (shop.home / "own-policy.yaml").write_text(text, "utf-8")
        recipe["promotion"]["policy"] = str(shop.home / "own-policy.yaml")

    return change


def no_test_rows(shop: Any, recipe: dict[str, Any]) -> None:
    recipe["data"] |= {"test": [], "test_fraction": 0.0}


def custom_template(text: str) -> Change:
    return lambda shop, recipe: recipe["prompt"].update(template="custom", custom_template=text)


def base_without(*patterns: str, instead: str = "") -> Change:
    def change(shop: Any, recipe: dict[str, Any]) -> None:
        folder = shutil.copytree(shop.base, shop.home / "base", ignore=shutil.ignore_patterns(*patterns))
        if instead:
            (folder / instead).write_bytes(b"pickled")
        recipe["base"] = {"model": str(folder)}

    return change


def base_of_type(name: str) -> Change:
    def change(shop: Any, recipe: dict[str, Any]) -> None:
        tokenizer = AutoTokenizer.from_pretrained(shop.base)
        recipe["base"] = {"model": str(base_of(name, shop.home / name, tokenizer))}

    return change


def long_test_row(shop: Any, recipe: dict[str, Any]) -> None:
    row = {"instruction": "What colour is grass? " * 100, "output": "green"}
    with (shop.home / "test.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row) + "\n")


ROW = b'{"instruction": "What colour is the sky?", "output": "blue"}\n'
GIANT = b'{"instruction": "' + b"a" * 5_000_000 + b'", "output": "b"}\n'
CASES: dict[str, tuple[Change, int, str]] = {
    "missing file": (source("nowhere.jsonl", None), 1, "nowhere.jsonl"),
    "empty file": (source("empty.jsonl", b""), 1, "empty.jsonl"),
    "not JSON": (source("words.jsonl", b"hello\nworld\n"), 1, "words.jsonl:1"),
    "wrong columns": (source("columns.jsonl", b'{"foo": "a", "bar": "b"}\n' * 3), 1, "columns.jsonl"),
    "one giant line": (source("giant.jsonl", GIANT), 1, "giant.jsonl"),
    "one giant broken line": (source("torn.jsonl", GIANT[:-20]), 1, "torn.jsonl"),
    "wrong encoding": (source("latin.jsonl", ROW.replace(b"blue", b"bl\xff\xfe")), 1, "latin.jsonl"),
    "torn gzip": (source("torn.jsonl.gz", gzip.compress(ROW * 100, mtime=0)[:-12]), 1, "torn.jsonl.gz"),
    "unknown key": (setting("training.learning_rat", 1.0), 2, "training.learning_rat"),
    "impossible value": (setting("training.learning_rate", -1), 2, "training.learning_rate"),
    "unknown model": (setting("base", {"model": "no-such-model"}), 1, "no-such-model"),
    "unknown folder": (setting("base", {"model": "./no/such/folder"}), 1, "no/such/folder"),
    "missing policy": (setting("promotion.policy", "no-policy.yaml"), 2, "no-policy.yaml"),
    "a policy that compares nothing": (policy("suite: test\nmin_rows: 1\n"), 2, "own-policy.yaml: under these rules"),
    "template without an answer": (custom_template("{{ messages[0]['content'] }}"), 2, "does not print the answer"),
    "broken template": (custom_template("{% for message in %}"), 2, "template"),
    "no test rows": (no_test_rows, 1, "test"),
    "base without weights": (base_without("*.safetensors"), 1, "no weights"),
    "pickled weights": (base_without("*.safetensors", instead="pytorch_model.bin"), 1, "pickles run code"),
    "base without a tokenizer": (base_without("token*"), 1, "no tokenizer"),
    "base of a type that cannot be trained": (base_of_type("falcon"), 1, "falcon cannot be trained on packed records"),
    "base of a type that mixes documents": (base_of_type("lfm2"), 1, "lfm2 does not compute packed records"),
    "test row too long": (long_test_row, 1, "test.jsonl:49): the prompt has"),
    "torn weights": (base_without("*.safetensors", instead="model.safetensors"), 1, "model.safetensors"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_ends_with_a_clear_message_and_leaves_nothing_half_made(case, fresh, capsys):
    change, code, said = CASES[case]
    recipe = fresh.recipe("bad").model_dump(mode="json")
    change(fresh, recipe)
    path = fresh.home / "bad.yaml"
    path.write_text(json.dumps(recipe), "utf-8")
    assert run(["retrain", str(path)]) == code
    shown = capsys.readouterr().err
    told = "".join(shown.replace("│", "").split())
    assert said.replace(" ", "") in told, shown
    panel = shown[shown.rindex("╭") :]
    assert len(panel) < 4000 and "Unexpected" not in panel, panel
    finished = {path.parent.parent.name for path in fresh.state.steps.glob("*/*/manifest.json")}
    assert finished <= {"support", "validate", *({"preprocess"} if case == "test row too long" else set())}
    assert fresh.versions("bad") == []


def test_a_file_in_the_place_of_the_state_folder_is_reported(fresh, capsys):
    fresh.state.root.write_text("in the way")
    assert run(["retrain", str(fresh.file(fresh.recipe("bad")))]) == 1
    assert "TUNELINE_HOME" in capsys.readouterr().err


@pytest.mark.slow
def test_a_full_disk_is_reported_and_the_work_goes_on_once_there_is_room(
    small_disk, fresh, monkeypatch, capsys, retrain
):
    monkeypatch.setenv("TUNELINE_HOME", str(small_disk / "state"))
    recipe = fresh.recipe("bad", training={"max_steps": 3})
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"0" * (23 * 1024 * 1024))
    with ballast.open("ab", buffering=0) as stream, pytest.raises(OSError, match="space"):
        while stream.write(b"0" * 4096):
            pass
    assert run(["retrain", str(fresh.file(recipe))]) == 1
    shown = " ".join(capsys.readouterr().err.replace("│", "").split())
    assert "full" in shown or "free space" in shown, shown
    assert not list((small_disk / "state").glob("steps/*/*/manifest.json"))
    ballast.unlink()
    assert not retrain(recipe).weights.reused


def test_a_disk_mounted_for_reading_is_reported(small_disk, fresh, monkeypatch, capsys):
    done = subprocess.run(["mount", "-o", "remount,ro", small_disk], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system may be mounted read-only here: {done.stderr.strip()}")
    monkeypatch.setenv("TUNELINE_HOME", str(small_disk / "state"))
    assert run(["retrain", str(fresh.file(fresh.recipe("bad")))]) == 1
    shown = capsys.readouterr().err
    assert "read-only" in shown and "TUNELINE_HOME" in shown


def test_a_base_is_tried_once_and_again_when_its_configuration_changes(fresh, monkeypatch):
    monkeypatch.chdir(fresh.home)
    base = shutil.copytree(fresh.base, fresh.home / "base")
    recipe = fresh.recipe("bad").model_copy(update={"base": BaseModelRecipe(model=str(base))})
    preflight(recipe)
    once = fresh.finished("support")
    preflight(recipe)
    assert fresh.finished("support") == once and len(once) == 1
    config = json.loads((base / "config.json").read_text("utf-8"))
    (base / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-5}), "utf-8")
    preflight(recipe)
    assert len(fresh.finished("support")) == 2
