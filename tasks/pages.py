"""What a flow run's page shows of a step: Markdown and progress in, Prefect artifacts out; nothing outside a run."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

from tasks.escaping import printable
from tasks.progress import Meter, tracked


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
