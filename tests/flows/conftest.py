"""A state folder, a Prefect server for the session, and recipes whose tiny model learns colours in seconds."""

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from flows.environment import SERVERS
from tasks.recipe.stages import Recipe
from tasks.registry.client import connect
from tasks.steps.state import State

if TYPE_CHECKING:
    from flows.retrain import Retrained

for name, value in {**SERVERS, "OMP_NUM_THREADS": "1"}.items():
    os.environ.setdefault(name, value)

ROOT = Path(__file__).parents[2]
THINGS = {"the sky": "blue", "grass": "green", "blood": "red", "snow": "white", "the sea": "blue", "a leaf": "green"}
PHRASES = ["What colour is {}?", "Name the colour of {}.", "{}: which colour?", "Colour of {}, please."]
ASKS = [phrase + more for phrase in PHRASES for more in ("", " Be short.", " Quick.")]
UNSEEN = [phrase + more for phrase in PHRASES for more in (" Now.", " One word.")]
POLICY = """
suite: test
min_rows: 20
better_than_base: {metric: primary}
not_worse_than_champion: {metric: primary, margin: 0.02}
parity: {min_top1_agreement: 0.9, min_answer_agreement: 0.9}
"""


def rows(asks: Sequence[str], things: dict[str, str]) -> list[dict[str, str]]:
    return [
        {"instruction": ask.format(it), "input": "", "output": colour} for it, colour in things.items() for ask in asks
    ]


def write(path: Path, records: Sequence[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


@dataclass
class Shop:
    """A state folder with data and a policy beside it; every test names its own model in it."""

    home: Path
    base: Path
    prefect: str

    @property
    def state(self) -> State:
        return State(self.home / "state")

    @property
    def uri(self) -> str:
        return self.state.tracking_uri

    def source(self, name: str, things: dict[str, str]) -> Path:
        """Training records that say these colours."""
        return write(self.home / name, rows(ASKS, things))

    def recipe(self, name: str, train: Path | None = None, **changes: dict[str, Any]) -> Recipe:
        """The smallest recipe that learns; keyword arguments change single keys of its parts."""
        parts: dict[str, dict[str, Any]] = {
            "data": {
                "train": [str(train or self.home / "train.jsonl")],
                "test": [str(self.home / "test.jsonl")],
                "validation": [str(self.home / "validation.jsonl")],
                "near_duplicate_similarity": 1.0,
                "max_quarantined": 0.5,
            },
            "prompt": {"max_length": 128, "system": "Answer with a colour."},
            "training": {
                "method": {"type": "lora", "rank": 32, "alpha": 64, "dropout": 0.0},
                "batch_tokens": 256,
                "learning_rate": 3e-3,
                "schedule": "constant",
                "epochs": 1000,
                "max_steps": 200,
                "validations": 2,
            },
            "evaluation": {"max_new_tokens": 8, "resamples": 200},
            "merging": {"prompts": 4},
            "promotion": {"policy": str(self.home / "policy.yaml")},
        }
        for part, keys in changes.items():
            parts[part] = {**parts.get(part, {}), **keys}
        return Recipe.model_validate({"name": name, "base": {"model": str(self.base)}, **parts})

    def finished(self, kind: str) -> dict[str, int]:
        """Finished steps of a kind by name, with the inode that tells whether a folder was made again."""
        found = (self.state.steps / kind).glob("*")
        return {path.name: path.stat().st_ino for path in found if path.is_dir() and path.suffix != ".partial"}

    def versions(self, name: str) -> list[int]:
        """Numbers of a registered model's versions."""
        found = connect(self.uri).search_model_versions(f"name = '{name}'")
        return sorted(int(version.version) for version in found)

    def runs(self) -> list[str]:
        """Ids of all MLflow runs."""
        client = connect(self.uri)
        return [run.info.run_id for run in client.search_runs([e.experiment_id for e in client.search_experiments()])]

    def file(self, recipe: Recipe) -> Path:
        path = self.home / f"{recipe.name}.yaml"
        path.write_text(json.dumps(recipe.model_dump(mode="json")), "utf-8")
        return path

    def start(self, *words: str, stdin: IO[str] | None = None, **variables: str) -> "subprocess.Popen[str]":
        """The real command in a process of its own, beside this session's Prefect server."""
        own = {"TUNELINE_HOME": str(self.state.root), "PREFECT_API_URL": self.prefect, "PYTHONPATH": str(ROOT)}
        environment = {**os.environ, **own, **variables}
        command = [sys.executable, "-c", "from flows.cli.main import main; main()", *words]
        return subprocess.Popen(
            command,
            cwd=self.home,
            env=environment,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(self, recipe: Recipe) -> str:
        """Run `tuneline retrain` to its end and return what it said."""
        process = self.start("retrain", str(self.file(recipe)))
        said, _ = process.communicate(timeout=400)
        assert process.returncode == 0, said
        return said


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[str]:
    from prefect.settings import get_current_settings
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield str(get_current_settings().api.url)


def shop_in(home: Path, base: Path, prefect: str) -> Shop:
    write(home / "train.jsonl", rows(ASKS, THINGS))
    write(home / "validation.jsonl", rows([phrase + " Soon." for phrase in PHRASES], THINGS))
    write(home / "test.jsonl", rows(UNSEEN, THINGS))
    (home / "policy.yaml").write_text(POLICY, "utf-8")
    return Shop(home, base, prefect)


@pytest.fixture(scope="session")
def shared(prefect_server: str, tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """One state folder for the session: what one test trained, another finds."""
    return shop_in(tmp_path_factory.mktemp("shop"), tiny_base, prefect_server)


def run_here(command: Sequence[str], environment: Mapping[str, str], _folder: Path, _timeout: float) -> str:
    """What `smoke_test._run` does, in this process: empty, or what went wrong."""
    script, *arguments = command[command.index("-c") + 1 :]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", *arguments])
        if "BASE_MODEL" in environment:
            patch.setenv("BASE_MODEL", environment["BASE_MODEL"])
        try:
            exec(script, {})
        except Exception:  # noqa: BLE001 - a process of its own would end with the traceback, whatever it was
            return traceback.format_exc()
    return ""


@pytest.fixture(autouse=True)
def versions_are_asked_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same question to the same files without a new interpreter, which imports for eight seconds each time.

    The process of its own is tried in tests/registry, in `released`, and by every test that runs the command.
    """
    monkeypatch.setattr("tasks.registry.smoke_test._run", run_here)


@pytest.fixture
def shop(shared: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """The shared state folder, as this process's own for the length of a test."""
    own_environment(monkeypatch, shared)
    return shared


def own_environment(patch: pytest.MonkeyPatch, shop: Shop) -> None:
    """Nothing that a flow sets in the environment outlives the patch."""
    patch.setattr(os, "environ", os.environ.copy())
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_HOME"):
        patch.delenv(name, raising=False)
    patch.setenv("TUNELINE_HOME", str(shop.state.root))
    patch.setenv("PREFECT_API_URL", shop.prefect)


@pytest.fixture
def fresh(prefect_server: str, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A state folder of a test's own."""
    own = shop_in(tmp_path, tiny_base, prefect_server)
    own_environment(monkeypatch, own)
    return own


@pytest.fixture(scope="session")
def released(shared: Shop) -> "Retrained":
    """Version 1 of `colours`, in production."""
    from flows.retrain import retrain

    with pytest.MonkeyPatch.context() as patch:
        own_environment(patch, shared)
        return retrain(shared.recipe("colours"))


@pytest.fixture
def retrain() -> "Callable[[Recipe], Retrained]":
    from flows.retrain import retrain

    return retrain
