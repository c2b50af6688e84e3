"""Steps as Prefect tasks, and what a run page shows of them: which failures are retried, cards, progress."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar, cast

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.tasks import Task

from tasks.artifacts import StepRecord
from tasks.errors import TransientError
from tasks.output.escaping import printable
from tasks.steps.progress import Meter, tracked

log = logging.getLogger("tuneline")
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result", bound=StepRecord)


def is_transient(_task: Task[..., object], _run: TaskRun, state: State[object]) -> bool:
    """Whether a failed task is tried again: only what may succeed with nothing changed."""
    try:
        state.result(raise_on_failure=True)
    except TransientError as fault:
        log.warning("transient failure, retrying if attempts remain: %s", fault)
        return True
    except BaseException:  # noqa: BLE001 (only asks what the failure was; the state keeps it)
        return False
    return False


def step(
    retries: int, retry_delay_seconds: list[float]
) -> Callable[[Callable[Arguments, Result]], Callable[Arguments, Result]]:
    """Make a task of a function that finds or makes a step; a found one ends as `Reused` on the run page.

    The step store decides what is reused, so Prefect's own cache is off (docs/decisions/0002-the-step-store.md).
    """

    def decorate(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
        @wraps(function)
        def body(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            found = function(*args, **kwargs)
            if not found.reused:
                return found
            state: State[Result] = Completed(name="Reused", message=f"found step {found.key[:12]}", data=found)
            return cast(Result, state)  # Prefect takes a returned state as the task's own

        shown = task(
            name=function.__name__,
            description=(function.__doc__ or "").split("\n")[0],
            retries=retries,
            retry_delay_seconds=retry_delay_seconds,
            retry_condition_fn=is_transient,
            cache_policy=NO_CACHE,
            persist_result=True,
            result_serializer="json",
        )(body)

        @wraps(function)
        def call(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
            state = shown(*args, return_state=True, **kwargs)
            return state.result()

        return call

    return decorate


def flow_run_id() -> str:
    """The id of the flow run that this process is in; empty outside one."""
    return flow_run.id or ""


def show(key: str, markdown: str, description: str) -> None:
    """Put a Markdown card on the run's Artifacts tab; the key has a history page over all runs."""
    if TaskRunContext.get() is not None:
        create_markdown_artifact(key=_key(key), markdown=printable(markdown), description=description)


@contextmanager
def shown_progress(what: str, total: int, unit: str) -> Iterator[Meter]:
    """A meter that is also a progress card on the run's page, from the first line it logs."""
    cards: list[object] = []

    def card(percent: float, line: str) -> None:
        if TaskRunContext.get() is None:
            return
        # The card's title says what; its one line has room for the numbers alone.
        numbers = line.removeprefix(f"{what}: ")
        if not cards:
            cards.append(create_progress_artifact(progress=percent, key=_key(what), description=numbers))
        else:
            update_progress_artifact(cards[0], progress=min(percent, 100.0), description=numbers)  # type: ignore[arg-type]

    with tracked(what, total, unit) as meter:
        meter.listeners.append(card)
        yield meter


def _key(text: str) -> str:
    """Prefect's keys are small letters, digits and hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
