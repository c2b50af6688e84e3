"""What a step needs besides its inputs: the state folder, the step store and the MLflow run of its release."""

from dataclasses import dataclass

from tasks.files.digests import digest
from tasks.recipe.stages import Recipe
from tasks.registry.release_run import ReleaseRun, flat
from tasks.steps.state import State, state
from tasks.steps.store import StepStore

SOURCES = {"train", "validation", "test"}
"""Keys that say where bytes lie: the bytes tell releases apart, and who decides on them (`promotion`) does not."""


@dataclass(frozen=True)
class Workspace:
    """What a step needs besides its inputs."""

    state: State
    store: StepStore
    run: ReleaseRun
    sources: str
    """Digest of the bytes that the recipe's sources held when this began; a dataset is made of these or of none."""

    @classmethod
    def open(cls, recipe: Recipe, source_digest: str, evaluated: str = "") -> "Workspace":
        """The workplace of one release, in this process's state folder; or of an evaluation of a registered version."""
        here = state()
        told = recipe.model_dump(mode="json", exclude={"promotion": True, "data": SOURCES})
        key = digest({"recipe": told, "sources": source_digest, **({"evaluated": evaluated} if evaluated else {})})
        tags = {
            "tuneline.model": recipe.name,
            "tuneline.base": recipe.base.model,
            "tuneline.sources": source_digest,
            "tuneline.train": ", ".join(recipe.data.train)[:500],
            **({"tuneline.evaluated": evaluated} if evaluated else {}),
        }
        name = f"{evaluated or recipe.name} {key[:8]}"
        return cls(here, StepStore(here.steps), ReleaseRun(here, key, name, tags, flat(told)), source_digest)
