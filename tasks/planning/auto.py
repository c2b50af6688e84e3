"""A recipe that leaves the method open in, the same with a method out: chosen by memory, once for a machine."""

import os
from pathlib import Path
from typing import Any

from tasks.artifacts import ChosenMethod
from tasks.files.digests import describing_digest, digest
from tasks.models import described
from tasks.planning.plan import resolve_auto
from tasks.recipe.methods import AutoMethod
from tasks.recipe.stages import Recipe
from tasks.steps.state import State
from tasks.steps.store import StepStore
from tasks.workspace import SOURCES

VERSION = 2


def resolve_method(recipe: Recipe, state: State) -> Recipe:
    """The recipe with `method: auto` replaced; any other recipe as it is.

    What was chosen is kept for the recipe, its base and this machine: what is free changes from minute to minute, and a
    run on unchanged data shall find its steps. Raises InvalidRecipe where no method fits.
    """
    if not isinstance(recipe.training.method, AutoMethod):
        return recipe
    told = recipe.model_dump(mode="json", exclude={"promotion": True, "data": SOURCES})
    base = describing_digest(described(recipe.base, state))
    inputs = {"version": VERSION, "recipe": told, "base": base, "machine": _machine()}

    def build(_: Path) -> ChosenMethod:
        method = resolve_auto(recipe).training.method
        return ChosenMethod(digest=digest(method), method=method.model_dump(mode="json"))

    found = StepStore(state.steps).make("plan", inputs, ChosenMethod, build)
    values = recipe.model_dump()
    values["training"]["method"] = found.method
    return Recipe.model_validate(values)


def _machine() -> list[Any]:
    """What decides how much a method may take: the GPUs, or the main memory in GiB."""
    import psutil
    import torch

    cards = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return [cards, os.cpu_count(), round(psutil.virtual_memory().total / 2**30)]
