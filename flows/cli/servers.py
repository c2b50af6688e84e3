"""The Prefect server of a command: the one that is set, that of `tuneline ui`, or a temporary one of its own."""

import atexit
import importlib
import os
import secrets
import socket
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flows.cli.children import keep, last_lines, release
from flows.cli.logs import logged
from flows.environment import AUTH, SERVER_AUTH, answers
from tasks.errors import PermanentError, ServiceUnavailable
from tasks.output.credentials import without_credentials
from tasks.registry import relocation
from tasks.steps.state import State
from tasks.steps.store import writable

if TYPE_CHECKING:
    import httpx

CORS = "PREFECT_SERVER_CORS_ALLOWED_ORIGINS"
ANSWERING_SECONDS = 10
TEMPORARY = {"PREFECT_UI_ENABLED": "0", "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"}
"""What Prefect sets for a temporary server: no page, and only the services that one flow run needs."""


@contextmanager
def flow_command(state: State, command: str) -> Iterator[Path]:
    """A command that runs flows: it has a Prefect server, and it logs as `logged` does; the log file.

    Raises ServiceUnavailable where that server does not answer, at the start or later, StateUnusable for a registry
    that was moved, and what `reach_prefect` raises.
    """
    relocation.check(state.tracking_uri)
    server = reach_prefect(state, f"flows.{command}")
    import httpx

    with logged(state, command) as log_file:
        try:
            yield log_file
        except (httpx.HTTPError, RuntimeError) as fault:
            failed = fault if isinstance(fault, httpx.HTTPError) else fault.__cause__
            if isinstance(failed, httpx.HTTPError) and _of_prefect(failed):
                raise (server.unavailable() if server else _unreachable(failed)) from fault
            raise


def reach_prefect(state: State, module: str = "prefect") -> "TemporaryServer | None":
    """Make sure that flow runs have a Prefect server, and import `module`; call `prepare_environment` before.

    Raises ServiceUnavailable where the server of PREFECT_API_URL does not answer or refuses this process, or where no
    temporary one starts; PermanentError where one of Prefect's settings files names a server.
    """
    if os.environ.get("PREFECT_API_URL"):
        check_prefect()
        importlib.import_module(module)
        return None
    server = TemporaryServer(state)
    # The server starts while what takes seconds is imported; Prefect reads its settings when it is.
    importlib.import_module(module)
    _refuse_settings_files()
    server.wait()
    return server


class TemporaryServer:
    """A Prefect server that asks for a password of this process's own and ends with it, by whatever that ends."""

    def __init__(self, state: State) -> None:
        password = os.environ.get(SERVER_AUTH) or f"tuneline:{secrets.token_urlsafe(24)}"
        with writable(state.root), socket.socket() as listening:
            # The kernel chooses the port, and the server inherits it open: nobody else can take it meanwhile.
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            self.port = listening.getsockname()[1]
            self.log = state.logs / f"server-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
            self.log.parent.mkdir(parents=True, exist_ok=True)
            environment = {**os.environ, **TEMPORARY, **guarded(self.port, password)}
            environment["PREFECT_HOME"] = str(Path(environment["PREFECT_HOME"]).absolute())
            with self.log.open("wb") as output:
                # Neither the working folder nor the state folder has settings for it.
                self.keeper = keep(
                    server_command(listening), Path(os.sep), environment, output, descriptors=[listening.fileno()]
                )
        # Registered before Prefect is imported, so it comes after what Prefect still sends at the end.
        atexit.register(self.end)
        os.environ |= {"PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api", AUTH: password}

    def wait(self) -> None:
        """Wait until it answers; raises ServiceUnavailable where it does not."""
        until = time.monotonic() + int(os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"])
        while not answers(self.port, "/api/health"):
            if self.keeper.poll() is not None or time.monotonic() > until:
                raise self.unavailable()
            time.sleep(0.05)

    def unavailable(self) -> ServiceUnavailable:
        """Say that it does not answer, and its last words."""
        code = self.keeper.poll()
        outcome = "does not answer" if code is None else f"ended with code {code}"
        return ServiceUnavailable(
            f"Prefect's temporary server {outcome}; run the same command again, or see what tuneline doctor says.\n"
            f"{last_lines(self.log)}"
        )

    def end(self) -> None:
        """End it, and wait for that."""
        release(self.keeper)
        with suppress(OSError):
            if not self.log.stat().st_size:
                self.log.unlink()


def server_command(listening: socket.socket) -> list[str]:
    """Prefect's API on a socket that is open already; `-P` and the folder keep the working folder's modules out."""
    application = ["--factory", "prefect.server.api.server:create_app", "--app-dir", sysconfig.get_path("purelib")]
    socket_and_log = ["--fd", str(listening.fileno()), "--log-level", "error", "--lifespan", "on"]
    return [sys.executable, "-P", "-m", "uvicorn", *application, *socket_and_log]


def guarded(port: int, password: str) -> dict[str, str]:
    """Settings that keep web pages out of a Prefect server: whoever asks needs the password, and only its own page may.

    A page of another origin gets no answer that it can read; one that the browser takes for the server's own (its name
    was pointed at 127.0.0.1) does not know the password. An origin that the user has set stays.
    """
    own = f"http://127.0.0.1:{port},http://localhost:{port}"
    return {SERVER_AUTH: password, CORS: os.environ.get(CORS, own)}


def check_prefect() -> None:
    """Raise ServiceUnavailable where the Prefect server of PREFECT_API_URL does not answer or refuses this process."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    try:
        with (
            temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 1}),
            get_client(sync_client=True, httpx_settings={"timeout": ANSWERING_SECONDS}) as client,
        ):
            client.read_flows(limit=1)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as fault:
        raise _unreachable(fault) from fault


def _unreachable(fault: Exception) -> ServiceUnavailable:
    import httpx

    address = without_credentials(os.environ["PREFECT_API_URL"])
    if isinstance(fault, httpx.HTTPStatusError):
        code = fault.response.status_code
        if code in (401, 403):
            return ServiceUnavailable(
                f"Prefect at {address} refuses this process ({code}): set {AUTH} to the user:password that it asks for "
                f"(for the server of `tuneline ui` in this folder, set or unset {SERVER_AUTH} as it was there)."
            )
        reason = f"answers {code}"
    else:
        reason = f"gives no answer of Prefect's: {str(fault) or type(fault).__name__}"
    return ServiceUnavailable(
        f"Prefect at {address} {reason}. Start it, correct PREFECT_API_URL, or unset that to work without."
    )


def _of_prefect(fault: "httpx.HTTPError") -> bool:
    """Whether an HTTP error came from a request to Prefect: the hub is asked by the same library."""
    try:
        url = fault.request.url
    except RuntimeError:
        return False
    server = urlsplit(os.environ.get("PREFECT_API_URL", ""))
    return (url.scheme, url.host, url.port) == (server.scheme, server.hostname, server.port)


def _refuse_settings_files() -> None:
    """Raise PermanentError where a file of Prefect's names a server, while the environment names none."""
    from prefect.settings.models.api import APISettings

    own = os.environ.pop("PREFECT_API_URL")
    try:
        url = APISettings().url
    finally:
        os.environ["PREFECT_API_URL"] = own
    if url:
        raise PermanentError(
            f"Prefect's settings files (.env, prefect.toml, pyproject.toml in {Path.cwd()}, or a profile) name the "
            f"server {without_credentials(url)}, and the environment names none. Only the variable PREFECT_API_URL "
            "chooses a server: set it to that address, or take the address out of the file."
        )
