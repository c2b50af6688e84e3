"""MLflow's SQLite file after kills: what is half-made is made, what is half-written is undone, the rest stays."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tasks.errors import ServiceUnavailable, StateUnusable
from tasks.registry import database, lookup
from tasks.registry.client import connect
from tasks.registry.runs import open_run

ROOT = Path(__file__).parents[2]
WRITER = """
import sqlite3, sys, time
store = sqlite3.connect(sys.argv[1], isolation_level=None)
store.execute("pragma cache_size = 5")
store.execute("begin immediate")
store.execute("create table filler (text)")
store.executemany("insert into filler values (?)", [("x" * 3000,)] * 300)
print("spilled", flush=True)
time.sleep(600)
"""
OPENER = "import sys; from tasks.registry.client import connect; connect(sys.argv[1])"


def killed_inside_a_commit(path: Path) -> None:
    """Leave a hot journal: a writer whose transaction outgrew its cache is killed before it ends."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None and writer.stdout.readline() == "spilled\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert path.with_name(f"{path.name}-journal").stat().st_size


@pytest.fixture
def store(tracking_uri, versions_of) -> str:
    versions_of("desk", 2)
    connect(tracking_uri).set_registered_model_alias("desk", "production", "2")
    return tracking_uri


@pytest.fixture
def path(tracking_uri) -> Path:
    database_path = database.sqlite_path(tracking_uri)
    assert database_path is not None
    return database_path


def test_a_look_up_undoes_what_a_killed_writer_had_begun(store, path, caplog):
    killed_inside_a_commit(path)
    version = lookup.find(store, "desk")
    assert version is not None and version.version == 2
    assert not path.with_name(f"{path.name}-journal").exists()
    assert "killed while it wrote" in caplog.text
    with closing(sqlite3.connect(path)) as content:
        assert not content.execute("select 1 from sqlite_master where name = 'filler'").fetchall()


def test_the_command_answers_after_a_killed_writer(store, path, tmp_path):
    killed_inside_a_commit(path)
    command = [sys.executable, "-c", "from flows.cli.main import main; main()", "lookup", "desk"]
    environment = {**os.environ, "TUNELINE_HOME": str(path.parent), "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "production" in done.stdout


def test_a_journal_on_a_disk_that_may_not_be_written_says_so(store, path, small_disk):
    killed_inside_a_commit(path)
    for part in path.parent.glob("mlflow.db*"):
        shutil.copy(part, small_disk)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(StateUnusable, match="writable"):
        lookup.find(f"sqlite:///{small_disk}/mlflow.db", "desk")


def test_a_database_that_another_process_writes_to_is_left_to_it(store, path):
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("begin exclusive")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(database, "SECONDS", 0.1)
            with pytest.raises(ServiceUnavailable, match="locked"):
                lookup.find(store, "desk")
        writer.execute("rollback")
    assert lookup.find(store, "desk") is not None


def torn(path: Path) -> None:
    """Take back the last migration by halves, as a process does that is killed in it."""
    with closing(sqlite3.connect(path, isolation_level=None)) as content:
        content.execute("update alembic_version set version_num = '6953534de441'")
        content.execute("drop table model_version_tags")


def test_tables_that_were_never_finished_are_set_aside_and_made_anew(tracking_uri, path, caplog):
    torn(path)
    run = open_run(tracking_uri, "tests", "release-1", "first", {})
    assert connect(tracking_uri).get_run(run.run_id).info.status == "RUNNING"
    (aside,) = path.parent.glob("mlflow.db.torn-*")
    assert aside.name in caplog.text


def test_a_store_that_holds_anything_is_never_set_aside(run, path):
    with closing(sqlite3.connect(path, isolation_level=None)) as content:
        content.execute("update alembic_version set version_num = '6953534de441'")
    before = path.read_bytes()
    database.prepare(path)
    assert path.read_bytes() == before
    assert not list(path.parent.glob("mlflow.db.torn-*"))


def test_what_a_killed_maker_left_beside_the_place_is_replaced(tmp_path):
    path = tmp_path / "mlflow.db"
    path.with_name(".mlflow.db.unfinished").write_bytes(b"SQLite format 3\0 and no more")
    path.with_name(".mlflow.db.unfinished-journal").write_bytes(b"")
    path.touch()
    connect(f"sqlite:///{path}")
    assert {entry.name for entry in tmp_path.iterdir()} == {"mlflow.db"}


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_store_whose_maker_was_killed_opens_afterwards(tmp_path, share):
    uri, folder = f"sqlite:///{tmp_path}/state/mlflow.db", tmp_path / "state"

    def start() -> "subprocess.Popen[bytes]":
        return subprocess.Popen([sys.executable, "-c", OPENER, uri], cwd=ROOT, stderr=subprocess.DEVNULL)

    def seconds_until_it_is_there(maker: "subprocess.Popen[bytes]") -> float:
        while not any(folder.glob(".mlflow.db.unfinished")):
            assert maker.poll() is None
            time.sleep(0.002)
        begun = time.monotonic()
        maker.wait(120)
        return time.monotonic() - begun

    whole = seconds_until_it_is_there(start())
    shutil.rmtree(folder)
    maker = start()
    while not any(folder.glob(".mlflow.db.unfinished")):
        time.sleep(0.002)
    time.sleep(share * whole)
    maker.kill()
    maker.wait()
    assert start().wait(120) == 0
    assert {entry.name for entry in folder.iterdir()} == {"mlflow.db"}
