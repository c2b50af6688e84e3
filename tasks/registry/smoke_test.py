"""A registered version and rows in, its answers out: loaded and asked as a consumer would, outside this project."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.errors import WorkRefused
from tasks.registry.versions import base_address, base_folder, checked_folder
from tasks.steps.child_environment import child_environment
from tasks.steps.scratch import scratch_folder

ASKING = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
}
ASK = """
import json, sys
import mlflow.pyfunc
model = mlflow.pyfunc.load_model(sys.argv[1])
with open(sys.argv[2], encoding="utf-8") as stream:
    rows = json.load(stream)
answers = [str(answer) for answer in model.predict(rows)]
with open(sys.argv[3], "w", encoding="utf-8") as stream:
    json.dump(answers, stream)
"""


def ask(
    tracking_uri: str, name: str, version: int, rows: Sequence[Mapping[str, Any]], cache: Path, timeout: float = 600
) -> list[str]:
    """Load a version as a consumer would and return its answers to `rows`, in order.

    It runs in a process of its own, with an isolated interpreter that cannot import this checkout, so that it proves
    the version stands alone and its memory is given back. What it is told has no credential in it: all that the
    version needs is fetched before. Raises WorkRefused with that process's last lines where the version does not load,
    does not answer every row, or takes more than `timeout` seconds.
    """
    folder = checked_folder(tracking_uri, name, version, cache)
    environment = child_environment(ASKING)
    if address := os.environ.get("BASE_MODEL") or base_address(folder):
        environment["BASE_MODEL"] = str(base_folder(address, tracking_uri, cache))
    with scratch_folder() as scratch:
        questions, answers = scratch / "rows.json", scratch / "answers.json"
        questions.write_text(json.dumps([dict(row) for row in rows], ensure_ascii=False), "utf-8")
        # MLflow leaves what it downloads in the temporary folder for ever; this one is deleted.
        environment["TMPDIR"] = str(scratch)
        # Without bytecode: a version is read in place where its store is a local folder.
        command = [sys.executable, "-I", "-B", "-c", ASK, str(folder), str(questions), str(answers)]
        fault = _run(command, environment, scratch, timeout)
        got = json.loads(answers.read_text("utf-8")) if not fault else []
    if fault or len(got) != len(rows):
        raise WorkRefused(f"{name}/{version} does not answer: {fault or f'{len(got)} answers to {len(rows)} rows'}")
    return got


def _run(command: list[str], environment: Mapping[str, str], folder: Path, timeout: float) -> str:
    """Empty, or what went wrong."""
    with (folder / "output.txt").open("w+b") as output:
        child = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdout=output,
            stderr=output,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            return f"no answer within {timeout:.0f} s."
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
        output.seek(0)
        lines = output.read().decode("utf-8", "replace").strip().splitlines()[-12:]
    if code < 0:
        return f"ended by {signal.Signals(-code).name} (memory?): " + "\n".join(lines)
    return "" if code == 0 else "\n".join(lines) or f"exit code {code}."
