"""Tokenised colour rows and a training job over them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from tasks.prompts import Example, PromptRenderer
from tasks.recipe.methods import LoraMethod
from tasks.recipe.stages import PromptRecipe, TrainingRecipe
from tasks.training.job import TrainingJob


@pytest.fixture(scope="session")
def examples(tiny_base: Path, colour_rows: list[dict[str, str]]) -> list[Example]:
    renderer = PromptRenderer(AutoTokenizer.from_pretrained(tiny_base), PromptRecipe(max_length=128))
    return [
        renderer.example(
            [{"role": "user", "content": row["instruction"]}, {"role": "assistant", "content": row["output"]}]
        )
        for row in colour_rows
    ]


def write(examples: list[Example], path: Path) -> Path:
    columns = {
        "input_ids": pa.array([example.input_ids for example in examples], pa.list_(pa.int32())),
        "labels": pa.array([example.labels for example in examples], pa.list_(pa.int32())),
    }
    pq.write_table(pa.table(columns), path)
    return path


def maker(base: Path, examples: list[Example], root: Path) -> Callable[..., TrainingJob]:
    """Makes jobs of about twenty steps under `root`; keyword arguments change their training recipe."""

    def make(name: str = "training", **changes: Any) -> TrainingJob:
        folder = root / name
        folder.mkdir()
        settings: dict[str, Any] = {
            "method": LoraMethod(rank=4, alpha=8, dropout=0.1),
            "batch_tokens": 256,
            "learning_rate": 5e-3,
            "max_steps": 12,
            "epochs": 20,
            "validations": 3,
        }
        return TrainingJob(
            folder=folder,
            base=base,
            base_name="tiny",
            trust_remote_code=False,
            train=write(examples[8:], root / f"{name}-train.parquet"),
            validation=write(examples[:8], root / f"{name}-validation.parquet"),
            tokenizer=base,
            recipe=TrainingRecipe(**(settings | changes)),
            seed=1,
            origin={"base": "tiny", "quantisation": TrainingRecipe(**(settings | changes)).method.quantisation},
        )

    return make


@pytest.fixture
def job(tiny_base: Path, examples: list[Example], tmp_path: Path) -> Callable[..., TrainingJob]:
    """Jobs in a folder of the test's own."""
    return maker(tiny_base, examples, tmp_path)


@pytest.fixture(scope="module")
def module_job(
    tiny_base: Path, examples: list[Example], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., TrainingJob]:
    """Jobs in a folder that the tests of a module share."""
    return maker(tiny_base, examples, tmp_path_factory.mktemp("trainings"))
