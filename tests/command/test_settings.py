import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tasks.settings import EPHEMERAL, State, prefect_address, prepare_environment, state


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> State:
    """A state folder and a process environment that says nothing about Prefect, MLflow or Tuneline."""
    for name in list(os.environ):
        if name.startswith(("PREFECT_", "MLFLOW_", "TUNELINE_")):
            monkeypatch.delenv(name)
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return State(tmp_path)


@pytest.fixture
def server():
    """A local server that is healthy where Prefect's is; gives its port."""

    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/api/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Healthy) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port
        running.shutdown()


def test_the_state_lies_in_the_working_folder_or_where_the_variable_says(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TUNELINE_HOME", raising=False)
    assert state().root == tmp_path / ".tuneline"
    monkeypatch.setenv("TUNELINE_HOME", "elsewhere")
    assert state().root == tmp_path / "elsewhere"


def test_mlflow_is_the_states_own_file_unless_a_server_is_named(bare: State, monkeypatch) -> None:
    assert bare.tracking_uri == f"sqlite:///{bare.root}/mlflow.db"
    os.environ["MLFLOW_TRACKING_URI"] = "http://mlflow:5000"
    assert bare.tracking_uri == "http://mlflow:5000"


def test_what_the_user_has_set_stays(bare: State) -> None:
    os.environ["PREFECT_HOME"] = "/mine"
    prepare_environment(bare)
    assert os.environ["PREFECT_HOME"] == "/mine"
    assert os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"] == "120"


def test_without_a_server_prefect_starts_its_own_small_one(bare: State) -> None:
    prepare_environment(bare)
    assert "PREFECT_API_URL" not in os.environ
    assert EPHEMERAL.items() <= os.environ.items()
    assert os.environ["PREFECT_HOME"] == str(bare.prefect_home)


def test_the_server_of_the_ui_is_found_and_used(bare: State, server: int) -> None:
    bare.ui_file.write_text(json.dumps({"prefect": {"port": server, "pid": os.getpid()}}))
    prepare_environment(bare)
    assert os.environ["PREFECT_API_URL"] == f"http://127.0.0.1:{server}/api"
    assert not EPHEMERAL.keys() & os.environ.keys()


@pytest.mark.parametrize(
    "content", ["", "{}", '{"prefect": {"port": 1, "pid": 1}}', '{"prefect": {"port": "x", "pid": null}}']
)
def test_a_stale_or_damaged_ui_file_means_no_server(bare: State, content: str) -> None:
    bare.ui_file.write_text(content)
    assert prefect_address(bare) is None


def test_a_server_of_a_process_that_is_gone_is_not_used(bare: State, server: int) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    bare.ui_file.write_text(json.dumps({"prefect": {"port": server, "pid": gone.pid}}))
    assert prefect_address(bare) is None


def test_settings_import_nothing_heavy() -> None:
    heavy = {"pydantic", "prefect", "mlflow", "rich", "yaml"}
    code = f"import sys, tasks.settings; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
