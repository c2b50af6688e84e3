"""What Prefect, MLflow and the threads of torch read from the environment, set before any of them is imported."""

import json
import logging
import os
import re
import secrets
import sys

from tasks.output.credentials import WithoutCredentials, split_login
from tasks.steps.state import State, make_private, mode_of

log = logging.getLogger("tuneline")

SERVERS = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "tuneline",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    # The run page keeps Prefect's own lines; the terminal shows ours.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "GIT_PYTHON_REFRESH": "quiet",
    "TOKENIZERS_PARALLELISM": "false",
    # What this process starts with `python -m` (Prefect's temporary server) imports no file of the working folder.
    "PYTHONSAFEPATH": "1",
    # A kernel of a hub is code that nobody declared.
    "USE_HUB_KERNELS": "NO",
}
AUTH = "PREFECT_API_AUTH_STRING"
"""What this process says to Prefect's server, as `user:password`."""
SERVER_AUTH = "PREFECT_SERVER_API_AUTH_STRING"
"""What a Prefect server that this process starts asks for."""
AUTH_FORM = re.compile(rb"[!-9;-~]+:[!-~]+\s*")
"""What a crash leaves of a password file, or a foreign hand writes there, need not be one."""
BUSY_PERCENT = 20.0
EPHEMERAL = {
    "PREFECT_SERVER_REGISTER_BLOCKS_ON_START": "false",
    "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_LATE_RUNS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_FOREMAN_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_CANCELLATION_CLEANUP_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_PAUSE_EXPIRATIONS_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_REPOSSESSOR_ENABLED": "false",
    "PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED": "false",
}
"""For Prefect's temporary server only: it lives for one flow run and schedules nothing."""


def prepare_environment(state: State) -> None:
    """Make the state folder, and set what Prefect and MLflow read when they are imported; what the user has set stays.

    Call it before either library is imported. INFO lines of `tuneline` pass from here on, so that a run page has them.
    Raises StateUnusable where the state folder cannot be made, or belongs to another account.
    """
    chosen = {**SERVERS, "TUNELINE_HOME": str(state.root)}
    if not os.environ.get("PREFECT_HOME"):
        # A state folder that came from somewhere else must not choose the server that flow runs are sent to.
        chosen |= {"PREFECT_HOME": str(state.prefect_home), "PREFECT_PROFILES_PATH": os.devnull}
        if (profiles := state.prefect_home / "profiles.toml").exists():
            log.warning("%s is not read; set PREFECT_API_URL to use a server.", profiles)
    for name, value in chosen.items():
        os.environ.setdefault(name, value)
    if login := split_login(os.environ.get("MLFLOW_TRACKING_URI", ""))[1]:
        os.environ.setdefault("MLFLOW_TRACKING_USERNAME", login.user)
        os.environ.setdefault("MLFLOW_TRACKING_PASSWORD", login.password)
    log.setLevel(logging.INFO)
    if not any(isinstance(each, WithoutCredentials) for each in log.filters):
        log.addFilter(WithoutCredentials())
    # bitsandbytes has no switch for it: it fetches a kernel from a hub where it can import this package.
    sys.modules.setdefault("kernels", None)  # type: ignore[arg-type]
    # On some processors it says at each import that it did not.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    make_private(state.root)
    if os.environ.get("PREFECT_API_URL"):
        return
    if address := prefect_address(state):
        # The user's own AUTH belongs to the user's own PREFECT_API_URL.
        os.environ |= {"PREFECT_API_URL": address, AUTH: os.environ.get(SERVER_AUTH) or auth_string(state)}
    else:
        for name, value in EPHEMERAL.items():
            os.environ.setdefault(name, value)


def auth_string(state: State) -> str:
    """What this state's Prefect server asks for: random, made once, in a file that only this account can read."""
    path = state.auth_file
    if not (path.is_file() and mode_of(path) == 0o600 and AUTH_FORM.fullmatch(path.read_bytes())):
        temporary = path.with_name(f".{path.name}-{os.getpid()}")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(f"tuneline:{secrets.token_urlsafe(24)}")
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    return path.read_text("utf-8").strip()


def choose_waiting(seconds: float) -> None:
    """Decide how this process's threads wait for each other, before torch is imported; what the user has set stays.

    Spinning is a third faster on a quiet machine, and ten times slower beside another busy process: look, then choose.
    """
    import psutil

    if "OMP_WAIT_POLICY" not in os.environ and psutil.cpu_percent(interval=seconds) >= BUSY_PERCENT:
        os.environ["OMP_WAIT_POLICY"] = "passive"


def prefect_address(state: State) -> str | None:
    """API address of the Prefect server that `tuneline ui` runs over this state, or None where none answers in 1 s."""
    try:
        server = json.loads(state.ui_file.read_text("utf-8"))["prefect"]
        os.kill(int(server["pid"]), 0)
        port = int(server["port"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return f"http://127.0.0.1:{port}/api" if answers(port, "/api/health") else None


def answers(port: int, path: str, seconds: float = 1.0, host: str = "127.0.0.1", secure: bool = False) -> bool:
    """Whether a server says 200 to GET `path` within `seconds`."""
    from http.client import HTTPConnection, HTTPException, HTTPSConnection

    connection = (HTTPSConnection if secure else HTTPConnection)(host, port, timeout=seconds)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()
