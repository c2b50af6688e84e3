"""An adapter on the tiny base, and fresh SQLite stores."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")


@pytest.fixture(scope="session")
def tiny_adapter(tiny_base, tmp_path_factory) -> Path:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(1)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_base),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False),
    )
    folder = tmp_path_factory.mktemp("tiny") / "adapter"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A SQLite store whose tables are made, to be copied: making them takes seconds."""
    from tasks.registry.client import connect

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    connect(f"sqlite:///{path}")
    return path


@pytest.fixture
def tracking_uri(empty_store, tmp_path) -> str:
    path = tmp_path / "mlflow.db"
    path.write_bytes(empty_store.read_bytes())
    return f"sqlite:///{path}"


@pytest.fixture
def run(tracking_uri):
    from tasks.registry.runs import open_run

    return open_run(tracking_uri, "tests", "release-1", "first", {"recipe": "r"})


@pytest.fixture(scope="module")
def registry(empty_store, tmp_path_factory):
    """One store shared by the tests of a module: (tracking_uri, run)."""
    from tasks.registry.runs import open_run

    path = tmp_path_factory.mktemp("registry") / "mlflow.db"
    path.write_bytes(empty_store.read_bytes())
    uri = f"sqlite:///{path}"
    return uri, open_run(uri, "tests", "release-1", "first", {})


@pytest.fixture
def versions_of(run, tmp_path):
    """Make versions that hold no model: aliases and look-ups need none."""
    from tasks.registry.client import connect

    def make(name: str, count: int) -> None:
        client = connect(run.tracking_uri)
        client.create_registered_model(name)
        for number in range(count):
            client.create_model_version(name, f"{tmp_path}/none", run.run_id, tags={"digest": f"{number:064d}"})

    return make
