"""A state folder that was renamed or restored elsewhere: said by every command, mended by one."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from flows.cli import servers
from tasks.errors import StateUnusable
from tasks.registry import database, relocation, runs, smoke_test, versions
from tasks.registry.client import connect
from tasks.steps.state import State

ROOT = Path(__file__).parents[2]
ROWS = [{"instruction": "Where is the order?"}]


def command(state: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "TUNELINE_HOME": str(state), "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    line = [sys.executable, "-c", "from flows.cli.main import main; main()", *words]
    return subprocess.run(line, cwd=state.parent, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def original(empty_store, tiny_base, tmp_path_factory) -> Path:
    """A state folder with a registered base model in production; its name needs encoding in an address."""
    state = tmp_path_factory.mktemp("made") / "state of 50 %"
    state.mkdir()
    (state / "mlflow.db").write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{state}/mlflow.db"
    run = runs.open_run(uri, "tuneline", "key", "desk", {})
    runs.log_parameters(run, {"rank": 8})
    (state / "note.txt").write_text("kept")
    runs.log_files(run, {"notes": state / "note.txt"})
    versions.register_model(run, "desk", "full", tiny_base, "d" * 64, {"kind": "full"})
    connect(uri).set_registered_model_alias("desk", "production", "1")
    return state


@pytest.fixture
def moved(original, tmp_path) -> Path:
    """The state folder in another place; the old place is gone."""
    before, state = tmp_path / "before", tmp_path / "moved"
    shutil.copytree(original, before)
    with closing(sqlite3.connect(before / "mlflow.db")) as store, store:
        # As if it had been made there.
        for table, column in relocation.COLUMNS:
            for old, new in ((original.as_uri(), before.as_uri()), (str(original), str(before))):
                store.execute(f"update {table} set {column} = replace({column}, ?, ?)", (old, new))
    assert not relocation.moved(f"sqlite:///{before}/mlflow.db")
    before.rename(state)
    return state


def test_a_command_that_runs_flows_says_it_before_it_starts_a_server(moved, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(servers, "reach_prefect", lambda *_: pytest.fail("a server was started first"))
    with pytest.raises(StateUnusable, match="--relocate"), servers.flow_command(State(moved), "rollback"):
        pytest.fail("it began")


def test_every_way_in_says_where_the_registry_was_made_and_what_to_do(moved, tmp_path):
    said = rf"made in {tmp_path}/before; it is now in {moved}.*tuneline doctor --relocate"
    uri = f"sqlite:///{moved}/mlflow.db"
    for enter in (
        lambda: connect(uri),
        lambda: runs.open_run(uri, "tuneline", "key", "desk", {}),
        lambda: versions.model_folder(uri, "desk", 1, moved / "cache"),
    ):
        with pytest.raises(StateUnusable, match=said):
            enter()
    assert not (tmp_path / "before").exists(), "nothing is written to the old place"


def test_a_look_up_answers_all_the_same_and_says_it_beside_the_answer(moved):
    done = command(moved, "lookup", "desk", "--json")
    assert (done.returncode, json.loads(done.stdout)["version"]) == (0, 1)
    assert "tuneline doctor --relocate" in done.stderr


@pytest.mark.slow
def test_after_relocating_the_version_loads_and_answers_from_the_new_place(moved):
    done = command(moved, "doctor", "--relocate")
    assert done.returncode == 0, done.stderr
    assert "experiments 1, runs 1, logged_models 1" in done.stdout and "1 of 1 versions have their files" in done.stdout
    uri = f"sqlite:///{moved}/mlflow.db"
    assert versions.model_folder(uri, "desk", 1, moved / "cache").is_relative_to(moved)
    assert len(smoke_test.ask(uri, "desk", 1, ROWS, moved / "cache")) == 1
    run = runs.open_run(uri, "tuneline", "key", "desk", {})
    assert runs.read_json(run, "missing.json") is None
    assert [entry.path for entry in connect(uri).list_artifacts(run.run_id, "notes")] == ["notes/note.txt"]
    assert "tuneline doctor --relocate" not in command(moved, "lookup", "desk").stderr


def test_the_database_as_it_was_is_kept_and_a_second_time_does_nothing(moved):
    uri = f"sqlite:///{moved}/mlflow.db"
    before = database.rows(moved / "mlflow.db", "select artifact_uri from runs")
    done = relocation.relocate(uri)
    assert done is not None and done.missing == []
    assert database.rows(done.backup, "select artifact_uri from runs") == before
    assert relocation.relocate(uri) is None


def test_a_registry_whose_files_were_left_behind_is_not_rewritten(moved):
    shutil.rmtree(moved / "mlflow-artifacts")
    (moved / "mlflow-artifacts").mkdir()
    content = (moved / "mlflow.db").read_bytes()
    with pytest.raises(StateUnusable, match="holds the files of none of the 1 versions"):
        relocation.relocate(f"sqlite:///{moved}/mlflow.db")
    assert (moved / "mlflow.db").read_bytes() == content


def test_a_copy_of_a_state_folder_is_told_too_and_the_original_is_not(moved, tmp_path):
    uri = f"sqlite:///{moved}/mlflow.db"
    relocation.relocate(uri)
    copy = tmp_path / "copy"
    shutil.copytree(moved, copy)
    assert "tuneline doctor --relocate" in relocation.moved(f"sqlite:///{copy}/mlflow.db")
    assert relocation.moved(uri) == ""


def test_a_link_to_a_state_folder_is_the_same_place(moved, tmp_path):
    relocation.relocate(f"sqlite:///{moved}/mlflow.db")
    (tmp_path / "link").symlink_to(moved)
    assert relocation.moved(f"sqlite:///{tmp_path}/link/mlflow.db") == ""


@pytest.mark.parametrize("words", [["export", "desk", "out"], ["ui"], ["promote", "desk", "1"]], ids=" ".join)
@pytest.mark.slow
def test_commands_that_need_the_files_end_with_the_way_to_mend_it(moved, words):
    done = command(moved, *words)
    assert done.returncode == 1
    assert "--relocate" in done.stderr and "Traceback" not in done.stderr
