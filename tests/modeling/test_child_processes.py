"""What a training process starts from: no file of the working folder, no secret of the environment, no terminal."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.modeling import exporting
from tasks.modeling.exporting import export
from tasks.recipe.stages import ComputeRecipe
from tasks.training import launch
from tasks.training.job import JOB, TrainingJob
from tasks.training.processes import WORKER
from tasks.training.worker import Exit

Make = Callable[..., TrainingJob]
NAMED_LIKE_LIBRARIES = ("torch", "datasets", "random", "evaluate", "accelerate", "json", "usercustomize")
SECRETS = {
    "HF_TOKEN": "hf_secret",
    "HF_HUB_TOKEN": "hf_secret",
    "AWS_SECRET_ACCESS_KEY": "aws-secret",
    "HF_HUB_ACCESSTOKEN": "hub-secret",
    "DS_APIKEY": "key-secret",
    "GPU_PASS": "pass-secret",
    "AWS_ACCESS_KEY_ID": "aws-secret",
    "PREFECT_API_KEY": "prefect-secret",
    "PREFECT_API_AUTH_STRING": "prefect-secret",
    "MLFLOW_TRACKING_PASSWORD": "mlflow-secret",
    "MLFLOW_TRACKING_TOKEN": "mlflow-secret",
    "MLFLOW_TRACKING_URI": "postgresql://tuneline:db-secret@host/db",
    "POSTGRES_PASSWORD": "db-secret",
    "OPENAI_API_KEY": "sk-secret",
    "TORCH_API_KEY": "sk-secret",
    "HTTPS_PROXY": "http://user:proxy-secret@proxy:3128",
    "https_proxy": "http://user:proxy-secret@proxy:3128",
    "PIP_INDEX_URL": "https://user:pip-secret@packages/simple",
}
HANDED_ON = {"CUDA_VISIBLE_DEVICES": "", "NCCL_DEBUG": "WARN", "OMP_NUM_THREADS": "1", "TZ": "UTC", "LC_ALL": "C.UTF-8"}
TWO = pytest.param(2, marks=pytest.mark.slow)


@pytest.fixture
def littered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder has files named like libraries; each of them writes to the file this gives when it runs."""
    folder, marker = tmp_path / "littered", tmp_path / "ran"
    folder.mkdir()
    for name in NAMED_LIKE_LIBRARIES:
        text = f"open({str(marker)!r}, 'a').write({name!r} + chr(10))\nraise ImportError({name!r})\n"
        (folder / f"{name}.py").write_text(text, "utf-8")
    monkeypatch.chdir(folder)
    return marker


def on(job: TrainingJob, processes: int) -> TrainingJob:
    return job.model_copy(update={"compute": ComputeRecipe(processes=processes)})


@pytest.mark.parametrize("processes", [1, TWO], ids=["one process", "two processes"])
def test_a_training_imports_no_file_of_the_working_folder(
    job: Make, littered: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An empty entry of a search path is the working folder, too.
    monkeypatch.setenv("PYTHONPATH", f"{os.environ.get('PYTHONPATH', '')}{os.pathsep}")
    short = on(job(max_steps=2, gradient_accumulation=2), processes)
    assert launch.train(short, listen=lambda new: None).step == 2
    assert not littered.exists()


@pytest.mark.slow
def test_nor_does_the_part_of_a_training_on_another_machine(job: Make, littered: Path) -> None:
    made = job(max_steps=2)
    (made.folder / JOB).write_text(made.model_dump_json(), "utf-8")
    command = [sys.executable, "-P", "-m", "tasks.training.processes", str(made.folder / JOB)]
    assert subprocess.run(command, check=False).returncode == Exit.done
    assert not littered.exists()


@pytest.mark.parametrize("processes", [1, TWO], ids=["one process", "two processes"])
def test_no_secret_of_the_environment_reaches_a_training(
    job: Make, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**SECRETS, **HANDED_ON}.items():
        monkeypatch.setenv(name, value)
    environments: list[dict[str, str]] = []

    def look(new: list[dict[str, Any]]) -> None:
        if any(event["event"] == "start" for event in new):
            # Beside the training this process may have a Prefect server that another test started.
            children = psutil.Process().children(recursive=True)
            environments.extend(child.environ() for child in children if WORKER in child.cmdline())

    monkeypatch.setattr(launch, "LOOK_EVERY_SECONDS", 0.02)
    launch.train(on(job(max_steps=60, gradient_accumulation=2), processes), look)
    assert len(environments) >= processes
    for environment in environments:
        assert "secret" not in str(environment)
        assert not SECRETS.keys() & environment.keys()
        assert environment["NCCL_DEBUG"] == "WARN" and environment["LC_ALL"] == "C.UTF-8"


def test_a_training_cannot_read_from_the_terminal(job: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = job(max_steps=1)
    code = "import sys; sys.exit(3 if sys.stdin.read() == '' else 1)"
    monkeypatch.setattr(launch.processes, "command", lambda *_: ([sys.executable, "-c", code], {}))
    reader, writer = os.pipe()
    os.write(writer, b"y\n")
    kept = os.dup(0)
    try:
        os.dup2(reader, 0)
        with pytest.raises(launch.TrainingDiverged):
            launch.train(made, listen=lambda new: None)
    finally:
        os.dup2(kept, 0)
        for number in (kept, reader, writer):
            os.close(number)


def test_the_check_of_an_export_is_told_no_secret(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    dump = f"import os, json\nopen({str(tmp_path / 'environment')!r}, 'w').write(json.dumps(dict(os.environ)))\n"
    monkeypatch.setattr(exporting, "ANSWER", dump + exporting.ANSWER)
    export(tiny_base, tmp_path / "out", "fp32", "2GB", {}, [[{"role": "user", "content": "Which colour?"}]])
    written = (tmp_path / "environment").read_text("utf-8")
    assert "secret" not in written and "HF_TOKEN" not in written and "PATH" in written
