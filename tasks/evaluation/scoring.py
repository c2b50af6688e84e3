"""A suite and something that answers in, one value a row and metric out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tasks.errors import InvalidData
from tasks.evaluation.suites import Answer, Suite, SuiteRow
from tasks.recipe.stages import MetricName

Floats = NDArray[np.float64]
Generate = Callable[[Sequence[SuiteRow]], list[Answer]]


@dataclass(frozen=True)
class SuiteScores:
    """How one model did on one suite; every array has one float64 a row, in the suite's order."""

    suite: str
    row_ids: tuple[str, ...]
    rows: dict[str, Floats]
    corpus: dict[str, float]
    answer_tokens: Floats
    stopped: Floats
    nll: Floats
    reference_tokens: Floats

    @property
    def stop_rate(self) -> float:
        """Share of answers that the model ended by itself."""
        return float(self.stopped.mean())

    @property
    def perplexity(self) -> float | None:
        """exp(nats / tokens) of the references over all rows; None where no row was measured."""
        tokens = self.reference_tokens.sum()
        return float(perplexity(self.nll.sum() / tokens)) if tokens else None


def perplexity(nats_per_token: Floats) -> Floats:
    """exp of the mean, held below infinity: JSON has no word for it, and a diverged model gets there."""
    return np.exp(np.minimum(nats_per_token, 700))


def score(suite: Suite, generate: Generate, metrics: Sequence[MetricName]) -> SuiteScores:
    """Ask for every row's answer and measure it.

    `generate` gets the suite's rows and returns their answers in that order; a test hands in a dictionary's look-up.
    Raises InvalidData for a suite without rows or with an id twice, and for answers that do not fit the rows.
    """
    check_rows(suite)
    answers = generate(suite.rows)
    _check_answers(suite, answers)
    # Imported here: `evaluate` brings torch and takes seconds.
    from tasks.evaluation.metrics import load

    texts, references = [answer.text for answer in answers], [row.reference for row in suite.rows]
    results = {name.value: load(name).compute(predictions=texts, references=references) for name in metrics}
    measured = [answer.nll is not None for answer in answers]
    return SuiteScores(
        suite=suite.name,
        row_ids=tuple(row.id for row in suite.rows),
        rows={name: np.asarray(result["rows"], dtype=np.float64) for name, result in results.items()},
        corpus={name: float(result["corpus"]) for name, result in results.items()},
        answer_tokens=_floats([answer.tokens for answer in answers]),
        stopped=_floats([answer.stopped for answer in answers]),
        nll=_floats([answer.nll or 0.0 for answer in answers]),
        reference_tokens=_floats([answer.reference_tokens for answer in answers]) * np.asarray(measured),
    )


def check_rows(suite: Suite) -> None:
    """Raise InvalidData for a suite that cannot be scored: no rows, or one id for two rows."""
    if not suite.rows:
        raise InvalidData(f"suite {suite.name!r}: it has no rows; give it test records, or a larger test_fraction.")
    ids = [row.id for row in suite.rows]
    if len(set(ids)) < len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise InvalidData(f"suite {suite.name!r}: two rows have the id {twice!r}; every row needs its own.")


def _check_answers(suite: Suite, answers: Sequence[Answer]) -> None:
    if len(answers) != len(suite.rows):
        raise InvalidData(f"suite {suite.name!r}: {len(suite.rows)} rows were asked, {len(answers)} answers came back.")
    for row, answer in zip(suite.rows, answers, strict=True):
        if answer.nll is not None and not np.isfinite(answer.nll):
            raise InvalidData(
                f"suite {suite.name!r}, row {row.id!r}: the reference's negative log likelihood is {answer.nll}; "
                "the model's logits are broken, so its answers are not scored."
            )


def _floats(values: Sequence[float]) -> Floats:
    return np.asarray(values, dtype=np.float64)
