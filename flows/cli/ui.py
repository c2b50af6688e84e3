"""Prefect's and MLflow's pages over one state: a State in; servers, deployments and a worker out, until a signal."""

import json
import os
import signal
import socket
import sys
from collections.abc import Mapping

from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from flows.cli.children import Children, Signalled
from flows.cli.servers import guarded
from flows.environment import AUTH, EPHEMERAL, SERVER_AUTH, answers, auth_string, prefect_address
from tasks.errors import PermanentError, ServiceUnavailable
from tasks.project import ROOT
from tasks.registry.database import is_server
from tasks.steps.state import State
from tasks.steps.store import writable

PREFECT_FILE = "deployments/prefect.yaml"
POOL = "tuneline"
PREFECT = [sys.executable, "-P", "-m", "prefect", "--no-prompt"]


def free_port(first: int) -> int:
    """The first port from `first` on that nothing on this machine listens at."""
    for port in range(first, first + 100):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise ServiceUnavailable(f"ports {first} to {first + 99} are all taken; end something, or set another port.")


def serve(state: State, console: Console) -> None:
    """Serve until Ctrl-C, SIGTERM or SIGHUP; then end every process that was started.

    Raises PermanentError where this state is served already or the deployments are refused, ServiceUnavailable
    where a server does not come up or ends by itself.
    """
    if address := prefect_address(state):
        raise PermanentError(f"{state.root} is served already: {address}. Look there, or end that `tuneline ui` first.")
    prefect = free_port(int(os.environ.get("PREFECT_SERVER_API_PORT", "4200")))
    mlflow = free_port(int(os.environ.get("MLFLOW_PORT", "5000")))
    password = os.environ.get(SERVER_AUTH) or auth_string(state)
    with writable(state.root), Children(state.logs, environment(state, prefect, password), ROOT) as children:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, children.on_signal)
        try:
            pids = _start_servers(children, state, prefect, mlflow, console)
            _deploy(children, console)
            pids["worker"] = children.start("worker", [*PREFECT, "worker", "start", "--pool", POOL, "--name", POOL])
            _write_ui_file(state, pids, {"prefect": prefect, "mlflow": mlflow})
            console.print(_welcome(state, prefect, mlflow))
            say_password(password, state, console)
            while True:
                children.pause(1)
        except Signalled:
            console.print("Ending the servers and the worker.")
        finally:
            state.ui_file.unlink(missing_ok=True)


def environment(state: State, prefect: int, password: str) -> dict[str, str]:
    """What servers, worker and the flow runs it starts are told; a temporary server's switches are not for them."""
    kept = {name: value for name, value in os.environ.items() if name not in EPHEMERAL}
    return {
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # Threads that spin would starve beside the servers.
        "OMP_WAIT_POLICY": "passive",
        **kept,
        "TUNELINE_HOME": str(state.root),
        "TUNELINE_ROOT": str(ROOT),
        "PYTHONSAFEPATH": "1",
        "PREFECT_API_URL": f"http://127.0.0.1:{prefect}/api",
        "PREFECT_UI_URL": f"http://127.0.0.1:{prefect}",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(prefect),
        "MLFLOW_BACKEND_STORE_URI": state.tracking_uri,
        **guarded(prefect, password),
        # A password that the user has set belongs to the server that the user has named: not to this one.
        AUTH: password,
    }


def _start_servers(children: Children, state: State, prefect: int, mlflow: int, console: Console) -> dict[str, int]:
    console.print("Starting Prefect and MLflow, about 20 s (a minute the first time).")
    pids = {"prefect": children.start("prefect", [*PREFECT, "server", "start"])}
    if not is_server(state.tracking_uri):
        pids["mlflow"] = children.start("mlflow", mlflow_command(state, mlflow))
        children.wait_for("mlflow", lambda: answers(mlflow, "/health"))
    children.wait_for("prefect", lambda: answers(prefect, "/api/health"))
    return pids


def mlflow_command(state: State, port: int) -> list[str]:
    """MLflow's server over the state's own artifacts; its store's address, which may hold a password, is a variable."""
    return [
        sys.executable,
        "-P",
        "-m",
        "mlflow",
        "server",
        "--artifacts-destination",
        str(state.artifacts),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]


def _deploy(children: Children, console: Console) -> None:
    if not (ROOT / PREFECT_FILE).is_file():
        raise PermanentError(f"{ROOT / PREFECT_FILE}: not there; run tuneline ui from a clone of the project.")
    console.print("Deploying retrain, evaluate, promote and rollback.")
    children.finish("pool", [*PREFECT, "work-pool", "create", POOL, "--type", "process", "--overwrite"])
    children.finish("deploy", [*PREFECT, "deploy", "--all", "--prefect-file", PREFECT_FILE])


def _write_ui_file(state: State, pids: Mapping[str, int], ports: Mapping[str, int]) -> None:
    content = {name: {"pid": pid, "port": ports.get(name)} for name, pid in pids.items()} | {"pid": os.getpid()}
    temporary = state.ui_file.with_suffix(".new")
    temporary.write_text(json.dumps(content, indent=1), "utf-8")
    temporary.replace(state.ui_file)


def say_password(password: str, state: State, console: Console) -> None:
    """Show what Prefect's page asks for, in one piece that can be copied; in a file, only where it is kept."""
    shown = password if console.is_terminal else f"see {state.auth_file}, or {SERVER_AUTH} where that is set"
    console.print(f"Prefect's page asks once for a password: {shown}", soft_wrap=True, highlight=False, markup=False)


def _welcome(state: State, prefect: int, mlflow: int) -> Panel:
    remote = is_server(state.tracking_uri)
    lines = [
        ("Prefect  ", f"http://127.0.0.1:{prefect}/v2/deployments"),
        ("", "  retrain → Run → Custom run: change the recipe in the form, press Submit."),
        ("", "  Runs: each step, its log and its reports (tab Artifacts). retrain also runs at 02:00 UTC."),
        ("MLflow   ", state.tracking_uri if remote else f"http://127.0.0.1:{mlflow}"),
        ("", "  Choose Model training at the top left. Experiments → tuneline: curves and reports of each run."),
        ("", "  Model registry: versions and their aliases."),
        ("", f"State {state.root}. `tuneline retrain` in this folder uses this Prefect by itself. Ctrl-C ends all."),
    ]
    text = Text("\n").join(Text.assemble((label, "bold"), line) for label, line in lines)
    return Panel(text, title="Tuneline", title_align="left", border_style="blue")
