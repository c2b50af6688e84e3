"""What keeps every run of an installation from its end is said at the start of each."""

from pathlib import Path

import pytest

from flows.preflight import preflight
from tasks.errors import StateUnusable
from tasks.recipe.stages import Recipe
from tasks.registry import packaging


def test_an_installation_without_the_file_that_versions_run_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the data were checked and a model trained until *register* found out."""
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(packaging, "SERVE_MODEL", tmp_path / "mlflow" / "serve_model.py")
    recipe = Recipe.model_validate({"name": "desk", "base": {"model": "none"}, "data": {"train": ["none.jsonl"]}})
    with pytest.raises(StateUnusable, match=r"serve_model\.py: not there.*Install Tuneline again"):
        preflight(recipe)
