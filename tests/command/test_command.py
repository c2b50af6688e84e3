import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import main
from flows.cli.main import run

COMMANDS = [
    "retrain",
    "validate",
    "evaluate",
    "promote",
    "rollback",
    "lookup",
    "show-recipe",
    "fetch-base",
    "doctor",
    "ui",
    "export",
    "plan",
]


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder and an environment that end with the test."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


@pytest.fixture
def registry(own_state: Path) -> Path:
    """As much of MLflow's database as a look-up reads: desk v3 in production."""
    own_state.mkdir()
    path = own_state / "mlflow.db"
    with sqlite3.connect(path) as store:
        store.executescript("""
            create table model_versions (workspace, name, version, run_id, source, description, current_stage);
            create table model_version_tags (workspace, name, version, key, value);
            create table registered_model_aliases (workspace, name, alias, version);
            insert into model_versions values ('default', 'desk', 3, 'run', 'models:/m-1', '', 'None');
            insert into model_version_tags values ('default', 'desk', 3, 'promoted', 'better on test');
            insert into registered_model_aliases values ('default', 'desk', 'production', 3);
        """)
    return path


def test_every_command_is_tested_here() -> None:
    assert sorted(info.name or info.callback.__name__ for info in main.app.registered_commands) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_a_command_does_shows_an_example_and_what_is_next(name: str, capsys) -> None:
    assert run([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"Example: tuneline {name}" in text
    assert "Next:" in text


def test_a_look_up_answers_without_the_libraries_that_take_seconds(registry: Path) -> None:
    code = (
        "import sys; from flows.cli.main import run; code = run(['lookup', 'desk', '--json']); "
        "sys.exit(code or len({'mlflow.version', 'prefect', 'torch', 'pandas', 'sqlalchemy'} & set(sys.modules)))"
    )
    root = Path(main.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["version"], found["source"], found["tags"]) == (3, "models:/m-1", {"promoted": "better on test"})


def test_a_look_up_says_whether_this_machines_ledger_has_the_decision(registry: Path, capsys) -> None:
    with sqlite3.connect(registry) as store:
        store.execute("insert into model_version_tags values ('default', 'desk', 3, 'decision', 'yes: better')")
    assert run(["lookup", "desk"]) == 0
    assert "the ledger of this machine has no such decision" in " ".join(capsys.readouterr().out.split())
    assert run(["lookup", "desk", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ledger"] is None
    entry = {
        "n": 1,
        "at": "2026-11-27T02:00:00+00:00",
        "kind": "decision",
        "name": "desk",
        "version": 3,
        "promote": True,
    }
    registry.with_name("ledger.jsonl").write_text(json.dumps(entry) + "\n", "utf-8")
    assert run(["lookup", "desk"]) == 0
    assert "entry 1, 2026-11-27" in capsys.readouterr().out
    assert run(["lookup", "desk", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ledger"]["n"] == 1


def test_an_alias_that_is_not_there_names_those_that_are(registry: Path, capsys) -> None:
    assert run(["lookup", "desk", "--alias", "staging"]) == 1
    assert "production → 3" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("retrian x.yaml", "retrain"),
        ("retrain", "RECIPE"),
        ("promote desk 1 --force", "--reason"),
        ("promote desk 1 --to prod", "candidate, staging, production"),
        ("rollback desk --reason ''", "--reason"),
        ("validate", "SOURCE"),
        ("export desk out --dtype int8", "fp32, bf16, fp16"),
        ("export desk out --shard-size 2", "GB or TB"),
        ("retrain missing.yaml", "no such file"),
        ("show-recipe missing.yaml", "no such file"),
    ],
)
def test_a_wrong_command_line_or_recipe_ends_with_2_and_says_what_is_wrong(line: str, said: str, capsys) -> None:
    assert run(["" if word == "''" else word for word in line.split()]) == 2
    shown = capsys.readouterr().err
    assert said in " ".join(shown.split())
    assert "Traceback" not in shown


def test_ctrl_c_ends_with_130(monkeypatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "_found", interrupted)
    assert run(["lookup", "desk"]) == 130


def test_debug_shows_where_it_happened_after_any_command(registry: Path, capsys) -> None:
    assert run(["lookup", "nobody", "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_validation_alone_shows_splits_and_findings_and_is_reused(colours: Path, own_state: Path, capsys) -> None:
    with colours.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"instruction": "Say nothing.", "input": "", "output": ""}) + "\n")
    assert run(["validate", str(colours)]) == 0
    text = capsys.readouterr().out
    assert "quarantine" in text and "empty" in text and "report.html" in text
    assert len(list((own_state / "steps" / "validate").glob("*/report.html"))) == 1
    assert list((own_state / "logs").glob("validate-*.log"))
    assert run(["validate", str(colours)]) == 0


def test_validation_alone_is_found_by_bytes_and_version_not_by_path(
    colours: Path, own_state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kept() -> int:
        return len(list((own_state / "steps" / "validate").glob("*/report.html")))

    assert run(["validate", str(colours)]) == 0
    assert run(["validate", str(colours.rename(colours.with_name("moved.jsonl")))]) == 0
    assert kept() == 1
    with monkeypatch.context() as patch:
        patch.setattr("tasks.data.dataset.VERSION", 0)
        assert run(["validate", str(colours.with_name("moved.jsonl"))]) == 0
    assert kept() == 2


def test_refused_data_ends_with_1_and_leaves_nothing_finished(tmp_path: Path, own_state: Path, capsys) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"instruction": "a", "output": ""}\n' * 30, "utf-8")
    assert run(["validate", str(bad)]) == 1
    assert "bad.jsonl" in capsys.readouterr().err
    assert not list((own_state / "steps" / "validate").glob("*/report.html"))


def test_a_recipe_can_be_shown_saved_and_shown_again(tmp_path: Path, capsys) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: desk\ndata: {train: [a]}\n")
    assert run(["show-recipe", str(path), "--set", "seed=7"]) == 0
    path.write_text(capsys.readouterr().out)
    assert run(["show-recipe", str(path)]) == 0
    assert capsys.readouterr().out == path.read_text()
    assert "seed: 7" in path.read_text()


def test_a_state_folder_that_cannot_be_made_is_reported(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "file" / "state"))
    assert run(["fetch-base", "smollm2-135m-instruct"]) == 1
    assert "TUNELINE_HOME" in capsys.readouterr().err
