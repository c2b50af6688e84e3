"""Processes that end with this one, however it ends: a command line in, a process with its output in a log file out."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

import psutil

from tasks.errors import PermanentError, ServiceUnavailable

STARTING_SECONDS = 180
ENDING_SECONDS = 15
KEEPER = """
import os, signal, subprocess, sys, threading
child = subprocess.Popen(sys.argv[2:], stdin=subprocess.DEVNULL, pass_fds=[int(fd) for fd in sys.argv[1].split()])
def end():
    sys.stdin.read()
    child.terminate()
    try:
        child.wait(10)
    except subprocess.TimeoutExpired:
        child.kill()
threading.Thread(target=end, daemon=True).start()
signal.signal(signal.SIGTERM, lambda *_: child.terminate())
code = child.wait()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
os.killpg(0, signal.SIGTERM)
os._exit(code if code >= 0 else 128 - code)
"""
"""Starts a child and reads a pipe that nobody writes to: that ends when the process at its other end does. Then the
child is ended, and with it what it left in its group."""


def keep(
    command: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    output: IO[bytes],
    descriptors: Sequence[int] = (),
) -> "subprocess.Popen[bytes]":
    """Start a process in a group of its own that ends when this one does, by `kill -9` too; `release` ends it before.

    What is given back is its keeper, which ends with the code of the process.
    """
    listed = " ".join(map(str, descriptors))
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", KEEPER, listed, *command],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        pass_fds=descriptors,
        start_new_session=True,
    )


def release(keeper: "subprocess.Popen[bytes]") -> None:
    """End what is kept and everything it started: asked first, killed where it does not listen."""
    started = psutil.Process(keeper.pid).children(recursive=True) if keeper.poll() is None else []
    if keeper.stdin:
        keeper.stdin.close()
    try:
        keeper.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        keeper.kill()
        keeper.wait()
    _, left = psutil.wait_procs(started, timeout=2)
    for orphan in left:
        orphan.terminate()
    for orphan in psutil.wait_procs(left, timeout=ENDING_SECONDS)[1]:
        orphan.kill()


def last_lines(log: Path) -> str:
    """The last lines of a log, and where the others are."""
    lines = log.read_text("utf-8", "replace").splitlines()[-15:]
    return "\n".join([*lines, f"(all of it: {log})"])


class Signalled(Exception):
    """SIGTERM, SIGHUP or Ctrl-C: end everything and leave."""


class Children:
    """Processes with names that end with this one, each with its own log file."""

    def __init__(self, logs: Path, environment: Mapping[str, str], folder: Path) -> None:
        self.logs, self.environment, self.folder = logs, dict(environment), folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.asked_to_end = False

    def pause(self, seconds: float = 0.3) -> None:
        """Wait a moment; raises Signalled after a signal, ServiceUnavailable where a child has ended by itself."""
        time.sleep(seconds)
        if self.asked_to_end:
            raise Signalled
        self.check()

    def on_signal(self, *_: object) -> None:
        """Note a signal. It raises nothing, so it is neither lost in a callback nor in the way of the ending."""
        self.asked_to_end = True

    def __enter__(self) -> Self:
        self.logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        for name in reversed(self.running):
            release(self.running[name])

    def start(self, name: str, command: Sequence[str]) -> int:
        """Start a process; gives the process id of its keeper."""
        with self.log(name).open("wb") as stream:
            self.running[name] = keep(command, self.folder, self.environment, stream)
        return self.running[name].pid

    def finish(self, name: str, command: Sequence[str]) -> None:
        """Start a process and wait for its success."""
        self.start(name, command)
        process = self.running.pop(name)
        try:
            self.wait_for(name, lambda: process.poll() is not None)
        finally:
            release(process)
        if process.returncode:
            raise PermanentError(f"{' '.join(command[1:])} failed:\n{self.tail(name)}")

    def log(self, name: str) -> Path:
        """The file a child writes to."""
        return self.logs / f"ui-{name}.log"

    def tail(self, name: str) -> str:
        """The last lines a child wrote, and where the others are."""
        return last_lines(self.log(name))

    def check(self) -> None:
        """Raise ServiceUnavailable where a child has ended by itself."""
        for name, process in self.running.items():
            if process.poll() is not None:
                raise ServiceUnavailable(f"{name} ended with code {process.returncode}:\n{self.tail(name)}")

    def wait_for(self, name: str, ready: Callable[[], bool]) -> None:
        """Wait until a child is ready; raises ServiceUnavailable where one ends by itself or it takes too long."""
        until = time.monotonic() + STARTING_SECONDS
        while not ready():
            if time.monotonic() > until:
                raise ServiceUnavailable(f"{name} was not ready in {STARTING_SECONDS} s:\n{self.tail(name)}")
            self.pause()
