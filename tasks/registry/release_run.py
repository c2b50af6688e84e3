"""Where a retraining works: its state folder, its step store and its one MLflow run, opened when first needed."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

from tasks.artifacts import StepRecord
from tasks.errors import RunGone, ServiceUnavailable, TunelineError
from tasks.files.durable import read, write_text
from tasks.files.locks import DAY, locked
from tasks.output.credentials import without_credentials
from tasks.steps.state import State
from tasks.steps.store import digest, writable

if TYPE_CHECKING:
    from tasks.registry.runs import MlflowRun

EXPERIMENT = "tuneline"
log = logging.getLogger("tuneline")


class ReleaseNote(BaseModel):
    """What is kept of an MLflow run between flow runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str


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
    _steps: "list[tuple[StepRecord, Callable[[MlflowRun], None]]]" = field(default_factory=list, repr=False)

    @property
    def note(self) -> Path:
        """Where the MLflow run's id is kept between flow runs."""
        key = digest([self.key, without_credentials(self.state.tracking_uri)])
        return self.state.root / "releases" / f"{key[:32]}.json"

    @property
    def known_id(self) -> str:
        """The id of the MLflow run, if it was opened before and the store still has it; otherwise empty."""
        return self._known()[0]

    def _known(self) -> tuple[str, str]:
        """Id and status of the MLflow run that was opened before; both empty where the store has none."""
        from tasks.registry.lookup import run_status

        note = None if self._opened else read(self.note, ReleaseNote)
        run_id = self._opened.run_id if self._opened else note.run_id if note else ""
        status = run_status(self.state.tracking_uri, run_id) if run_id else ""
        return (run_id, status) if status else ("", "")

    def open(self) -> "MlflowRun":
        """The MLflow run, found or made, and set to running; made again where somebody deleted it meanwhile."""
        from tasks.registry import runs

        if self._opened is None or not self.known_id:
            run = runs.open_run(
                self.state.tracking_uri, EXPERIMENT, self.key, self.name, self.tags, self.state.artifacts
            )
            runs.log_parameters(run, self.parameters)
            with writable(self.note.parent):
                write_text(self.note, ReleaseNote(run_id=run.run_id).model_dump_json())
            self._opened = run
        return self._opened

    def log_once(self, step: StepRecord, tell: "Callable[[MlflowRun], None]") -> None:
        """Tell MLflow of a step, unless this MLflow run was told before; while it does not answer, the step is owed.

        A finished step is worth more than the telling: what is owed is told with the next step or in the next flow run.
        """
        self._steps.append((step, tell))
        for _ in range(2):
            try:
                self._flush()
            except RunGone as fault:
                log.warning("the MLflow run is made again and told every step. %s", fault)
                continue
            except ServiceUnavailable as fault:
                log.warning("MLflow is unreachable; results will be logged later. Continuing. %s", fault)
            return

    def _flush(self) -> None:
        """Tell the MLflow run every step of this flow run that it does not know: all of them when it is a new one."""
        known = self.known_id
        for step, tell in self._steps:
            if known and _mark(step, known).exists():
                continue
            run = self.open()
            known = run.run_id
            # Another process may retrain the same at the same time, and find the same step.
            with writable(step.folder), locked(_lock(step), DAY, "telling MLflow of this step"):
                if not _mark(step, known).exists():
                    tell(run)
                    _mark(step, known).touch()

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """End the MLflow run as what it came to; also one that an earlier flow run could not end."""
        try:
            yield
        except BaseException:
            self._finish("FAILED")
            raise
        self._finish("FINISHED")

    def _finish(self, status: str) -> None:
        try:
            if self._opened is not None:
                self._flush()
            run_id, standing = self._known()
            # A flow run that finds every step opens nothing: it ends only what an earlier one left open or failed.
            if not run_id or standing == status or (self._opened is None and standing == "FINISHED"):
                return
            from tasks.registry import runs

            run = runs.MlflowRun(run_id=run_id, experiment_id="", tracking_uri=self.state.tracking_uri)
            runs.finish(run, status)
        except TunelineError as fault:
            # The flow's own outcome is worth more than the status of the MLflow run, which the next flow run mends.
            log.warning("the MLflow run keeps its status until the next flow run: %s", fault)


def _mark(step: StepRecord, run_id: str) -> Path:
    """The file that says that this MLflow run was told of a step."""
    return step.folder / f".told-{run_id}"


def _lock(step: StepRecord) -> Path:
    """The lock under which a step is also built."""
    return step.folder.with_name(f"{step.folder.name}.lock")


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
