"""Where a retraining works: its state folder, its step store and its one MLflow run, opened when first needed."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.artifacts import StepRecord
from tasks.credentials import without_credentials
from tasks.errors import ServiceUnavailable, TunelineError
from tasks.recipe import Recipe
from tasks.settings import State, state
from tasks.store import StepStore, digest, writable

if TYPE_CHECKING:
    from tasks.registry.tracking import MlflowRun

EXPERIMENT = "tuneline"
SOURCES = {"train", "validation", "test"}
"""Keys that say where bytes lie: the bytes tell releases apart, and who decides on them (`promotion`) does not."""
log = logging.getLogger("tuneline")


@dataclass
class ReleaseRun:
    """The MLflow run of one release: the same recipe and the same data always write to the same MLflow run.

    MLflow is not even imported while there is nothing to tell it: what was told is marked in the step's own folder.
    """

    state: State
    key: str
    name: str
    tags: dict[str, str]
    parameters: dict[str, Any]
    _opened: "MlflowRun | None" = field(default=None, repr=False)
    _owed: "list[tuple[StepRecord, Callable[[MlflowRun], None]]]" = field(default_factory=list, repr=False)

    @property
    def note(self) -> Path:
        """Where the MLflow run's id is kept between flow runs."""
        key = digest([self.key, without_credentials(self.state.tracking_uri)])
        return self.state.root / "releases" / f"{key[:32]}.json"

    @property
    def known_id(self) -> str:
        """The id of the MLflow run, if it was opened before and the store still has it; otherwise empty."""
        from tasks.registry.lookup import has_run

        if self._opened is not None:
            return self._opened.run_id
        try:
            run_id = str(json.loads(self.note.read_text("utf-8"))["run_id"])
        except (OSError, ValueError, KeyError):
            return ""
        return run_id if has_run(self.state.tracking_uri, run_id) else ""

    def open(self) -> "MlflowRun":
        """The MLflow run, found or made, and set to running."""
        from tasks.registry import tracking

        if self._opened is None:
            found = tracking.open_run(
                self.state.tracking_uri, EXPERIMENT, self.key, self.name, self.tags, self.state.artifacts
            )
            tracking.log_parameters(found, self.parameters)
            with writable(self.note.parent):
                self.note.write_text(json.dumps({"run_id": found.run_id}), "utf-8")
            self._opened = found
        return self._opened

    def once(self, step: StepRecord, tell: "Callable[[MlflowRun], None]") -> None:
        """Tell MLflow of a step, unless this MLflow run was told before; while it does not answer, the step is owed.

        A finished step is worth more than the telling: what is owed is told with the next step or in the next flow run.
        """
        self._owed.append((step, tell))
        try:
            self._settle_up()
        except ServiceUnavailable as fault:
            log.warning("MLflow does not answer, it is told later; the work goes on. %s", fault)

    def _settle_up(self) -> None:
        while self._owed:
            step, tell = self._owed[0]
            known = self.known_id
            if not (known and (step.folder / f".told-{known}").exists()):
                run = self.open()
                tell(run)
                with writable(step.folder):
                    (step.folder / f".told-{run.run_id}").touch()
            self._owed.pop(0)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """End the MLflow run as what it came to, if anything opened it."""
        try:
            yield
        except BaseException:
            self._finish("FAILED")
            raise
        self._finish("FINISHED")

    def _finish(self, status: str) -> None:
        if self._opened is None:
            return
        from tasks.registry import tracking

        try:
            self._settle_up()
            tracking.finish(self._opened, status)
        except TunelineError as fault:
            # The flow's own outcome is worth more than the status of the MLflow run, which the next flow run mends.
            log.warning("the MLflow run keeps its status: %s", fault)


@dataclass(frozen=True)
class Workplace:
    """What a verb needs besides its inputs."""

    state: State
    store: StepStore
    run: ReleaseRun

    @classmethod
    def open(cls, recipe: Recipe, source_digest: str, evaluated: str = "") -> "Workplace":
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
        return cls(here, StepStore(here.steps), ReleaseRun(here, key, name, tags, flat(told)))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, keys joined by dots.

    >>> flat({"training": {"epochs": 1, "method": {"rank": 8}}})
    {'training.epochs': 1, 'training.method.rank': 8}
    """
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        key: part for name, inner in value.items() for key, part in flat(inner, f"{prefix}.{name}".strip(".")).items()
    }
