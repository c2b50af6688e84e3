"""The data step as a fixture: sources and settings in, everything it wrote out."""

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.data.dataset import load_split, validate_sources
from tasks.recipe.stages import DataRecipe
from tests.data.small_files import Outcome, Validate


@pytest.fixture
def validate(tmp_path_factory: pytest.TempPathFactory) -> Validate:
    """Run the data step on sources; everything else is the recipe's."""

    def run(train: Path | list[Path], seed: int = 1, **settings: Any) -> Outcome:
        sources = [str(path) for path in (train if isinstance(train, list) else [train])]
        settings = {"max_quarantined": 1.0, **settings}
        recipe = DataRecipe.model_validate({"train": sources, **settings})
        folder = tmp_path_factory.mktemp("dataset")
        noun = validate_sources(recipe, folder, seed=seed, name="trial")
        quarantine = [json.loads(line) for line in (folder / "quarantine.jsonl").read_bytes().split(b"\n") if line]
        splits = [load_split(folder / f"{name}.jsonl") for name in ("train", "validation", "test")]
        return Outcome(noun, *splits, quarantine, json.loads((folder / "report.json").read_text("utf-8")))

    return run
