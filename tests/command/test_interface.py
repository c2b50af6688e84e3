import io
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from flows.cli import ui
from flows.cli.children import Children, Signalled, keep, release
from flows.cli.ui import environment, free_port
from flows.environment import EPHEMERAL, answers, prefect_address
from tasks.errors import PermanentError, ServiceUnavailable
from tasks.steps.state import State
from tests.command.web_page import ask, refuses_web_pages

SLEEP = "import time; time.sleep(60)"
FAMILY = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEP}']); {SLEEP}"


@pytest.mark.parametrize("command", [ui.PREFECT, ui.mlflow_command(State(Path("state")), 1)[:4]])
def test_servers_import_no_file_of_the_working_folder(command: list[str], tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for name in ("random", "sqlalchemy", "uvicorn"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'w')\n")
    subprocess.run([*command, "--help"], cwd=tmp_path, check=True, capture_output=True)
    assert not marker.exists()
    assert environment(State(tmp_path), 4200, "tuneline:x")["PYTHONSAFEPATH"] == "1"


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < free_port(port) < port + 100


def test_servers_are_not_told_the_switches_of_a_temporary_one(tmp_path: Path, monkeypatch) -> None:
    for name, value in EPHEMERAL.items():
        monkeypatch.setenv(name, value)
    told = environment(State(tmp_path), 4299, "tuneline:x")
    assert not EPHEMERAL.keys() & told.keys()
    assert told["PREFECT_API_URL"] == "http://127.0.0.1:4299/api"
    assert told["TUNELINE_HOME"] == str(tmp_path)


def test_servers_ask_for_the_password_and_worker_and_flow_runs_have_it(tmp_path: Path, monkeypatch) -> None:
    """Also where the user has set a password: that one belongs to the server that the user has named."""
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "somebody:elses")
    told = environment(State(tmp_path), 4299, "tuneline:x")
    assert told["PREFECT_API_AUTH_STRING"] == told["PREFECT_SERVER_API_AUTH_STRING"] == "tuneline:x"
    origins = told["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"].split(",")
    assert origins == ["http://127.0.0.1:4299", "http://localhost:4299"]


@pytest.mark.parametrize("terminal", [True, False])
def test_the_password_is_shown_in_one_piece_on_a_terminal_and_never_in_a_file(terminal: bool, tmp_path: Path) -> None:
    console = Console(width=50, file=io.StringIO(), force_terminal=terminal)
    ui.say_password("tuneline:" + "x" * 60, State(tmp_path), console)
    shown = console.file.getvalue()
    assert ("tuneline:" + "x" * 60 in shown) == terminal
    assert (str(State(tmp_path).auth_file) in shown) != terminal


def test_a_signal_to_the_pages_is_noted_wherever_it_arrives_and_ends_what_waits(tmp_path: Path) -> None:
    with Children(tmp_path, os.environ, tmp_path) as children:
        children.on_signal()
        with pytest.raises(Signalled):
            children.finish("deploy", [sys.executable, "-c", SLEEP])
        with pytest.raises(Signalled):
            children.pause(0)


def test_children_and_what_they_started_end_together(tmp_path: Path) -> None:
    with Children(tmp_path, os.environ, tmp_path) as children:
        child = psutil.Process(children.start("family", [sys.executable, "-c", FAMILY]))
        until = time.monotonic() + 20
        while not child.children() and time.monotonic() < until:
            time.sleep(0.05)
        family = [child, *child.children()]
        assert len(family) == 2
    assert psutil.wait_procs(family, timeout=5)[1] == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_kept_ends_with_its_process_whatever_ends_that(number: signal.Signals, tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from flows.cli.children import keep;"
        f"keep([sys.executable, '-c', {FAMILY!r}], Path.cwd(), os.environ, sys.stderr.buffer); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=ui.ROOT) as keeping:
        until = time.monotonic() + 20
        while len(family := psutil.Process(keeping.pid).children(recursive=True)) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(family) == 3, "keeper, child and grandchild"
        keeping.send_signal(number)
    assert psutil.wait_procs(family, timeout=20)[1] == []


def test_a_kept_process_hands_on_its_exit_code_and_leaves_no_child(tmp_path: Path) -> None:
    leaves = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(50)']); sys.exit(7)"
    )
    with (tmp_path / "log").open("wb") as log:
        kept = keep([sys.executable, "-c", leaves], tmp_path, os.environ, log)
        group = kept.pid
        assert kept.wait(20) == 7
        release(kept)
    until = time.monotonic() + 10
    while time.monotonic() < until:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the group lives on")


def test_a_child_that_ends_by_itself_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with Children(tmp_path, os.environ, tmp_path) as children:
        children.start("server", [sys.executable, "-c", "raise SystemExit('port is taken')"])
        with pytest.raises(ServiceUnavailable, match="port is taken"):
            children.wait_for("server", lambda: False)


def test_a_command_that_fails_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with Children(tmp_path, os.environ, tmp_path) as children, pytest.raises(PermanentError, match="no such flow"):
        children.finish("deploy", [sys.executable, "-c", "raise SystemExit('no such flow')"])


@pytest.mark.slow
def test_both_pages_come_up_again_and_again_over_one_state_let_no_page_in_and_nothing_stays(tmp_path: Path) -> None:
    told = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    told |= {"TUNELINE_HOME": str(tmp_path), "PYTHONPATH": str(ui.ROOT)}
    command = [sys.executable, "-c", "from flows.cli.main import main; main()", "ui"]
    here = State(tmp_path)
    for number, code in {signal.SIGTERM: 0, signal.SIGINT: 0, signal.SIGKILL: -signal.SIGKILL}.items():
        serving = subprocess.Popen(command, env=told, cwd=ui.ROOT, stdout=subprocess.PIPE, text=True)
        try:
            until = time.monotonic() + 240
            while not here.ui_file.exists() and serving.poll() is None and time.monotonic() < until:
                time.sleep(0.5)
            servers = json.loads(here.ui_file.read_text("utf-8"))
            assert prefect_address(here)
            assert answers(servers["mlflow"]["port"], "/health")
            family = psutil.Process(serving.pid).children(recursive=True)
            assert len(family) >= 3
            if number == signal.SIGTERM:
                password = here.auth_file.read_text("utf-8")
                refuses_web_pages(servers["prefect"]["port"], password)
                mlflow_refuses_web_pages(servers["mlflow"]["port"])
                a_second_shell_uses_the_server(here, told)
                assert not any(password in " ".join(process.cmdline()) for process in family)
            serving.send_signal(number)
            assert serving.wait(60) == code
            said = [serving.stdout.read(), *(path.read_text("utf-8") for path in here.logs.iterdir())]
            assert str(here.auth_file) in said[0] and password not in "".join(said)
        finally:
            serving.terminate()
            serving.communicate()
        assert psutil.wait_procs(family, timeout=30)[1] == []
        assert prefect_address(here) is None


def mlflow_refuses_web_pages(port: int) -> None:
    body = {"name": "evil"}
    path = "/api/2.0/mlflow/experiments/create"
    assert ask(port, "POST", path, body, Origin="http://evil.example") == 403
    assert ask(port, "POST", path, body, Origin="http://evil.example", Host=f"evil.example:{port}") == 403


def a_second_shell_uses_the_server(here: State, told: dict[str, str]) -> None:
    """A command finds server and password by itself: its flow run stands on the page."""
    command = [sys.executable, "-c", "from flows.cli.main import main; main()", "rollback", "nobody", "--reason", "x"]
    done = subprocess.run(command, env=told, cwd=ui.ROOT, capture_output=True, text=True, timeout=200)
    assert "UnknownVersion" in done.stderr, done.stderr
    with sqlite3.connect(here.prefect_home / "prefect.db") as history:
        runs = history.execute("select name, state_type from flow_run where not auto_scheduled").fetchall()
    assert runs == [("nobody", "FAILED")]
    assert not list(here.logs.glob("server-*"))
