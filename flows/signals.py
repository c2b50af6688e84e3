"""The end of this process, by whatever: Prefect's temporary server, which it started, ends with it."""

import os
import signal
import subprocess
import sys
from types import FrameType
from typing import NoReturn

import psutil

SERVER = "prefect.server.api.server:create_app"
WATCH = """
import os, signal, sys
server = os.pidfd_open(int(sys.argv[1]))
sys.stdin.read()
try:
    signal.pidfd_send_signal(server, signal.SIGTERM)
except ProcessLookupError:
    pass
"""
"""Reads a pipe that nobody writes to: it ends when the process at its other end does."""
_watched: dict[int, "subprocess.Popen[bytes]"] = {}


def exit_when_asked() -> None:
    """Let SIGTERM and a closed terminal end this process by an exit, so that it can stop what it started."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup has it ignored, and so it stays.
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit)


def _exit(number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


def watch_server() -> None:
    """Have a small process end Prefect's temporary server, if this process has one, should it be killed; on Linux."""
    for child in psutil.Process().children() if hasattr(os, "pidfd_open") else ():
        if SERVER in child.cmdline() and child.pid not in _watched:
            command = [sys.executable, "-I", "-S", "-c", WATCH, str(child.pid)]
            _watched[child.pid] = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
