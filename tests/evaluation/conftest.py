"""Suites and answers small enough to score by hand."""

from collections.abc import Callable, Sequence

import pytest

from tasks.evaluation.suites import Answer, Suite, SuiteRow

Answering = Callable[[Sequence[SuiteRow]], list[Answer]]


@pytest.fixture
def make_suite() -> Callable[..., Suite]:
    """A suite of (prompt, reference) pairs; `columns` gives each row's columns by its index."""

    def make(
        pairs: Sequence[tuple[str, str]], columns: Callable[[int], dict[str, str]] = lambda at: {}, name: str = "test"
    ) -> Suite:
        rows = [
            SuiteRow(
                id=f"{name}-{at}", messages=({"role": "user", "content": ask},), reference=told, columns=columns(at)
            )
            for at, (ask, told) in enumerate(pairs)
        ]
        return Suite(name=name, rows=tuple(rows))

    return make


@pytest.fixture
def say() -> Callable[..., Answering]:
    """What a model would be: looks its answers up by prompt, in a dictionary or a function."""

    def make(answers: Callable[[str], str], nll: float | None = 2.0, tokens: int = 4) -> Answering:
        return lambda rows: [
            Answer(text=answers(row.prompt), tokens=tokens, stopped=True, nll=nll, reference_tokens=4) for row in rows
        ]

    return make
