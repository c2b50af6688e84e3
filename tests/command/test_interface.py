import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows import interface
from flows.interface import Children, environment, free_port
from tasks.errors import PermanentError, ServiceUnavailable
from tasks.settings import EPHEMERAL, State, answers, prefect_address

SLEEP = "import time; time.sleep(60)"
FAMILY = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', '{SLEEP}']); {SLEEP}"


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < free_port(port) < port + 100


def test_servers_are_not_told_the_switches_of_a_temporary_one(tmp_path: Path, monkeypatch) -> None:
    for name, value in EPHEMERAL.items():
        monkeypatch.setenv(name, value)
    told = environment(State(tmp_path), 4299)
    assert not EPHEMERAL.keys() & told.keys()
    assert told["PREFECT_API_URL"] == "http://127.0.0.1:4299/api"
    assert told["TUNELINE_HOME"] == str(tmp_path)


def test_children_and_what_they_started_end_together(tmp_path: Path) -> None:
    with Children(tmp_path, os.environ) as children:
        child = psutil.Process(children.start("family", [sys.executable, "-c", FAMILY]))
        until = time.monotonic() + 20
        while not child.children() and time.monotonic() < until:
            time.sleep(0.05)
        family = [child, *child.children()]
        assert len(family) == 2
    assert psutil.wait_procs(family, timeout=5)[1] == []


def test_a_child_that_ends_by_itself_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with Children(tmp_path, os.environ) as children:
        children.start("server", [sys.executable, "-c", "raise SystemExit('port is taken')"])
        with pytest.raises(ServiceUnavailable, match="port is taken"):
            children.wait_for("server", lambda: False)


def test_a_command_that_fails_is_reported_with_its_last_words(tmp_path: Path) -> None:
    with Children(tmp_path, os.environ) as children, pytest.raises(PermanentError, match="no such flow"):
        children.finish("deploy", [sys.executable, "-c", "raise SystemExit('no such flow')"])


@pytest.mark.slow
def test_both_pages_come_up_twice_over_one_state_and_nothing_stays(tmp_path: Path) -> None:
    told = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    told |= {"TUNELINE_HOME": str(tmp_path), "PYTHONPATH": str(interface.ROOT)}
    command = [sys.executable, "-c", "from flows.command import main; main()", "ui"]
    here = State(tmp_path)
    for number in (signal.SIGTERM, signal.SIGINT):
        with subprocess.Popen(command, env=told, cwd=interface.ROOT, stdout=subprocess.PIPE, text=True) as serving:
            until = time.monotonic() + 240
            while not here.ui_file.exists() and serving.poll() is None and time.monotonic() < until:
                time.sleep(0.5)
            servers = json.loads(here.ui_file.read_text("utf-8"))
            assert prefect_address(here)
            assert answers(servers["mlflow"]["port"], "/health")
            family = psutil.Process(serving.pid).children(recursive=True)
            assert len(family) >= 3
            serving.send_signal(number)
            assert serving.wait(60) == 0
        assert psutil.wait_procs(family, timeout=5)[1] == []
        assert not here.ui_file.exists()
