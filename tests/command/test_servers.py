"""The Prefect server of a command, as a web page, another account and a kill see it: real processes throughout."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from flows.cli.servers import check_prefect, without_credentials
from tasks.errors import ServiceUnavailable
from tests.command.web_page import refuses_web_pages

ROOT = Path(__file__).resolve().parents[2]
WAITS = """
import os, time
from flows.cli.servers import reach_prefect
from flows.environment import AUTH, prepare_environment
from tasks.steps.state import state
prepare_environment(state())
reach_prefect(state())
print(os.environ["PREFECT_API_URL"], os.environ[AUTH], flush=True)
time.sleep(600)
"""
MAIN = "from flows.cli.main import main; main()"
RECIPE = "name: nobody\ndata: {train: [nothing.jsonl]}\nbase: {model: nowhere}\n"
LINES = {
    "promote": ["promote", "nobody", "1"],
    "rollback": ["rollback", "nobody", "--reason", "wrong"],
    "evaluate": ["evaluate", "recipe.yaml"],
    "retrain": ["retrain", "recipe.yaml"],
}
KEPT = "Finished steps are kept; run the same command again to continue."


class Served(NamedTuple):
    """A server, what it asks for, and the process that it is to end with."""

    port: int
    password: str
    process: "subprocess.Popen[str]"


def bare(home: Path, **variables: str) -> dict[str, str]:
    """This process's environment without a word about Prefect, MLflow or Tuneline."""
    told = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "MLFLOW_", "TUNELINE_"))}
    return {**told, "TUNELINE_HOME": str(home), "PYTHONPATH": str(ROOT), **variables}


def start(folder: Path, code: str, *words: str, **variables: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env=bare(folder / "state", **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The temporary server of a process that works on."""
    with start(tmp_path_factory.mktemp("served"), WAITS) as process:
        assert process.stdout
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line + process.stdout.read()
        url, password = line.split()
        yield Served(int(url.split(":")[2].split("/")[0]), password, process)
        process.terminate()


def first_event(port: int, token: str) -> str:
    """What a page is told that opens Prefect's event stream, which no CORS guards, with a token."""
    from websockets.exceptions import WebSocketException
    from websockets.sync.client import connect

    try:
        with connect(
            f"ws://127.0.0.1:{port}/api/events/out", subprotocols=["prefect"], origin="http://evil.example"
        ) as stream:
            stream.send(json.dumps({"type": "auth", "token": token}))
            return str(json.loads(stream.recv(timeout=20)).get("type"))
    except WebSocketException as closed:
        return type(closed).__name__


def test_no_web_page_gets_into_the_temporary_server_of_a_command(served: Served) -> None:
    refuses_web_pages(served.port, served.password)


def test_no_web_page_reads_its_events(served: Served) -> None:
    assert first_event(served.port, served.password) == "auth_success"
    assert first_event(served.port, "tuneline:guess").startswith("ConnectionClosed")


def test_its_password_is_long_its_own_and_on_no_command_line(served: Served) -> None:
    user, _, secret = served.password.partition(":")
    assert user == "tuneline" and len(secret) >= 32
    family = psutil.Process(served.process.pid).children(recursive=True)
    assert len(family) == 2
    assert not any(secret in word for process in family for word in process.cmdline())


def test_a_server_that_refuses_a_command_or_is_down_is_named_with_what_to_do(served: Served, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{served.port}/api"
    cases = {url: "PREFECT_API_AUTH_STRING", "http://ann:secret-1@127.0.0.1:9/api": "unset"}
    for address, advice in cases.items():
        process = start(tmp_path, MAIN, *LINES["rollback"], PREFECT_API_URL=address, COLUMNS="300")
        said, _ = process.communicate(timeout=200)
        assert process.returncode == 1
        assert "ServiceUnavailable" in said and without_credentials(address) in said and advice in said
        assert "secret-1" not in said
        assert not (tmp_path / "state" / "logs").exists(), "said before the flow's libraries are imported"


@pytest.mark.parametrize("url", ["prefect:4200/api", "http://127.0.0.1:x/api", "ftp://127.0.0.1/api"])
def test_an_address_that_is_none_is_reported_as_one(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", url)
    with temporary_settings({PREFECT_API_URL: url}), pytest.raises(ServiceUnavailable, match="PREFECT_API_URL"):
        check_prefect()


@pytest.mark.parametrize("name", [".env", pytest.param("prefect.toml", marks=pytest.mark.slow)])
def test_a_settings_file_of_the_working_folder_does_not_choose_the_server(name: str, tmp_path: Path) -> None:
    line = 'api.url = "http://127.0.0.1:9/api"' if name == "prefect.toml" else "PREFECT_API_URL=http://127.0.0.1:9/api"
    (tmp_path / name).write_text(line, "utf-8")
    process = start(tmp_path, MAIN, *LINES["rollback"], COLUMNS="300")
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "http://127.0.0.1:9/api" in said and "PREFECT_API_URL" in said


def sees(process: psutil.Process, word: str) -> Callable[[], list[psutil.Process]]:
    """Looks for the processes that one started, once the command line of one of them has a word in it."""

    def look() -> list[psutil.Process]:
        family = process.children(recursive=True)
        return family if any(word in " ".join(child.cmdline()) for child in family) else []

    return look


def wait_for(seconds: float, look: Callable[[], list[psutil.Process]]) -> list[psutil.Process]:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if seen := look():
                return seen
        except psutil.NoSuchProcess:
            pass
        time.sleep(0.01)
    raise AssertionError(f"not seen in {seconds} s")


def ended_early(command: str, number: signal.Signals, folder: Path) -> tuple[int, str]:
    """Start a command, signal it at the first sight of its server, and see that nothing stays; its code and words."""
    (folder / "recipe.yaml").write_text(RECIPE, "utf-8")
    with start(folder, MAIN, *LINES[command]) as process:
        family = wait_for(120, sees(psutil.Process(process.pid), "uvicorn"))
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert psutil.wait_procs(family, timeout=30)[1] == []
    return process.returncode, said


def test_kill_9_of_promote_leaves_no_server(tmp_path: Path) -> None:
    assert ended_early("promote", signal.SIGKILL, tmp_path)[0] == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("command", ["rollback", "evaluate", "retrain"])
def test_kill_9_of_a_command_before_its_first_step_leaves_no_server(command: str, tmp_path: Path) -> None:
    assert ended_early(command, signal.SIGKILL, tmp_path)[0] == -signal.SIGKILL


@pytest.mark.parametrize(
    ("number", "code", "how"), [(signal.SIGINT, 130, "Interrupted"), (signal.SIGTERM, 143, "Ended by SIGTERM")]
)
def test_a_command_that_is_asked_to_end_says_what_is_kept(number, code: int, how: str, tmp_path: Path) -> None:
    returned, said = ended_early("retrain", number, tmp_path)
    assert returned == code
    assert said.splitlines()[-1] == f"{how}. {KEPT}"
    assert "Traceback" not in said
