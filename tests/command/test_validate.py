"""`tuneline validate` on names and texts that would do something to a terminal."""

import json
from pathlib import Path

import pytest

from flows.cli.main import run
from tasks.artifacts import ValidatedDataset
from tasks.data.dataset import dataset_inputs, source_digest
from tasks.recipe.file import load_recipe
from tasks.steps.state import State
from tasks.steps.store import StepStore
from tests.data.small_files import alpaca, write_lines

ATTACK = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202e"


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


def unsafe(text: str) -> list[str]:
    return [mark for mark in ("\x1b", "\x07", "\x9b", "\u202e") if mark in text]


def test_no_escape_of_a_file_reaches_the_terminal_or_the_log(state, tmp_path, capsys):
    rows = [{**row, f"column{ATTACK}": "x"} for row in alpaca(60)]
    rows.append({"instruction": f"what {ATTACK}", "output": ""})
    path = write_lines(tmp_path / f"rows{ATTACK}.jsonl", rows)
    assert run(["validate", str(path)]) == 0
    shown = capsys.readouterr()
    assert not unsafe(shown.out + shown.err)
    assert "rows\\u001b]0;owned" in "".join(shown.out.split())
    assert not any(unsafe(log.read_text("utf-8")) for log in state.glob("logs/*.log"))


def test_an_error_that_quotes_a_file_is_safe_to_show(state, tmp_path, capsys):
    path = write_lines(tmp_path / "a.jsonl", [{f"column{ATTACK}": "x", "other": "y"}])
    assert run(["validate", str(path)]) == 1
    shown = capsys.readouterr()
    assert not unsafe(shown.out + shown.err)
    assert "column\\u001b]0;owned" in "".join(shown.err.replace("│", "").split())


@pytest.mark.parametrize("name", ["高血压", "问答 records"])
def test_a_file_name_in_another_encoding_is_read_from_the_command_line(state, tmp_path, capsys, name):
    import os

    path = tmp_path / os.fsdecode(f"{name}.jsonl".encode("gbk", "ignore"))
    assert run(["validate", str(write_lines(path, alpaca(60)))]) == 0
    report = json.loads(next(state.glob("steps/validate/*/report.json")).read_text("utf-8"))
    assert report["rows_read"] == 60


def test_the_same_bytes_are_validated_once(state, tmp_path, capsys):
    path = write_lines(tmp_path / "a.jsonl", alpaca(60))
    assert run(["validate", str(path)]) == run(["validate", str(path)]) == 0
    assert len(list(state.glob("steps/validate/*/report.json"))) == 1


def test_a_format_beside_a_recipe_is_the_one_that_is_read(state, tmp_path, capsys):
    write_lines(tmp_path / "a.jsonl", alpaca(60))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: desk\ndata: {{train: [{tmp_path / 'a.jsonl'}]}}\n", "utf-8")
    assert run(["validate", "--recipe", str(recipe), "--format", "alpaca"]) == 0
    assert run(["validate", "--recipe", str(recipe), "--format", "sharegpt"]) == 1
    assert "conversations" in capsys.readouterr().err


def test_a_retraining_finds_what_was_validated_alone(state, tmp_path, capsys):
    write_lines(tmp_path / "a.jsonl", alpaca(60))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"name: desk\ndata: {{train: [{tmp_path / 'a.jsonl'}]}}\n", "utf-8")
    assert run(["validate", "--recipe", str(recipe)]) == 0
    told = load_recipe(recipe)
    inputs = dataset_inputs(told, source_digest(told.data))
    store = StepStore(State(state).steps)
    assert store.find("validate", store.key("validate", inputs), ValidatedDataset)
