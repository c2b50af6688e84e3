import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from flows.environment import AUTH, EPHEMERAL, SERVER_AUTH, auth_string, prefect_address, prepare_environment
from tasks.errors import StateUnusable
from tasks.steps.state import State, make_private, state


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


def test_the_running_ui_is_told_its_password_also_from_a_second_shell(bare: State, server: int) -> None:
    bare.ui_file.write_text(json.dumps({"prefect": {"port": server, "pid": os.getpid()}}))
    kept = auth_string(bare)
    os.environ[AUTH] = "somebody:elses"
    prepare_environment(bare)
    assert os.environ[AUTH] == kept
    prepare_environment(bare)
    assert os.environ[AUTH] == kept


def test_a_password_that_the_user_chose_for_the_ui_is_used(bare: State, server: int) -> None:
    bare.ui_file.write_text(json.dumps({"prefect": {"port": server, "pid": os.getpid()}}))
    os.environ[SERVER_AUTH] = "ann:chosen"
    prepare_environment(bare)
    assert os.environ[AUTH] == "ann:chosen"
    assert not bare.auth_file.exists()


def test_the_password_of_this_state_goes_to_no_server_that_the_user_named(bare: State, server: int) -> None:
    bare.ui_file.write_text(json.dumps({"prefect": {"port": server, "pid": os.getpid()}}))
    auth_string(bare)
    os.environ["PREFECT_API_URL"] = "http://prefect.example/api"
    prepare_environment(bare)
    assert AUTH not in os.environ and SERVER_AUTH not in os.environ


def test_the_password_is_random_made_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    one, other = State(tmp_path / "one"), State(tmp_path / "other")
    for kept in (one, other):
        make_private(kept.root)
    first = auth_string(one)
    assert first == auth_string(one) != auth_string(other)
    assert first.startswith("tuneline:") and len(first) > 40
    assert one.auth_file.stat().st_mode & 0o777 == 0o600
    assert list(one.root.iterdir()) == [one.auth_file]


@pytest.mark.parametrize("spoilt", ["readable by others", "", "\0" * 40, "tuneline:\xe4", "no colon", "tuneline:"])
def test_a_password_that_others_may_know_or_that_is_none_is_made_anew(spoilt: str, tmp_path: Path) -> None:
    kept = State(tmp_path)
    before = auth_string(kept)
    if spoilt == "readable by others":
        kept.auth_file.chmod(0o644)
    else:
        kept.auth_file.write_text(spoilt, "latin-1")
    assert auth_string(kept) not in (spoilt, before)
    assert kept.auth_file.stat().st_mode & 0o777 == 0o600


def test_a_profile_that_lies_in_the_state_folder_is_not_read_and_that_is_said(tmp_path: Path) -> None:
    profiles = tmp_path / "prefect" / "profiles.toml"
    profiles.parent.mkdir()
    profiles.write_text('active = "x"\n[profiles.x]\nPREFECT_API_URL = "http://127.0.0.1:9911/api"\n', "utf-8")
    code = (
        "from flows.environment import prepare_environment; from tasks.steps.state import state; "
        "prepare_environment(state());"
        "from prefect.settings import PREFECT_API_URL; print(PREFECT_API_URL.value())"
    )
    told = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    told |= {"TUNELINE_HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=told, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"
    assert f"{profiles} is not read" in done.stderr


def test_the_state_folder_is_the_owners_alone_whoever_made_it_before(bare: State, caplog) -> None:
    fresh = State(bare.root / "fresh")
    prepare_environment(fresh)
    assert fresh.root.stat().st_mode & 0o777 == 0o700
    assert not caplog.records
    old = State(bare.root / "old")
    old.root.mkdir(mode=0o755)
    prepare_environment(old)
    assert old.root.stat().st_mode & 0o777 == 0o700
    assert "0755" in caplog.text and str(old.root) in caplog.text


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away")
def test_a_state_folder_of_another_account_is_refused_before_anything_in_it_is_read(bare: State, server: int) -> None:
    bare.ui_file.write_text(json.dumps({"prefect": {"port": server, "pid": os.getpid()}}))
    os.chown(bare.root, 12345, 12345)
    with pytest.raises(StateUnusable, match="12345"):
        prepare_environment(bare)
    assert "PREFECT_API_URL" not in os.environ


def test_no_kernel_is_fetched_from_a_hub(bare: State, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "kernels.py").write_text("def get_kernel(*_, **__): raise SystemExit('fetched')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "kernels", raising=False)
    prepare_environment(bare)
    with pytest.raises(ImportError):
        __import__("kernels")
    assert os.environ["USE_HUB_KERNELS"] == "NO"
    from transformers.utils import is_kernels_available

    assert not is_kernels_available()


def test_settings_import_nothing_heavy() -> None:
    heavy = {"pydantic", "prefect", "mlflow", "rich", "yaml"}
    code = f"import sys, tasks.steps.state; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
