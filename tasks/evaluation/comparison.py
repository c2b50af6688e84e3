"""Row scores of several models in, a suite's report out: intervals, paired comparisons, slices."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tasks.artifacts import Comparison, Estimate, SliceScores, SuiteReport, Who
from tasks.errors import InvalidData
from tasks.evaluation.resampling import Resampler, edge_bound
from tasks.evaluation.scoring import SuiteScores, check_rows, perplexity
from tasks.evaluation.suites import Suite
from tasks.output.personal_data import hidden
from tasks.recipe.stages import EvaluationRecipe

Floats = NDArray[np.float64]
SMALLEST_SLICE = 5


def report_suite(
    suite: Suite,
    scores: Mapping[Who, SuiteScores],
    recipe: EvaluationRecipe,
    slice_columns: Sequence[str] = (),
    seed: int = 0,
) -> SuiteReport:
    """Estimate every model's scores, compare the candidate with each other model row by row, and score slices.

    Raises InvalidData for an empty suite, for scores of other rows than the suite's, and where no candidate is scored.
    """
    check_rows(suite)
    _check_same_rows(suite, scores)
    resampler = Resampler(recipe.resamples, recipe.confidence, seed)
    metrics = [metric.value for metric in recipe.metrics]
    against: list[Who] = [who for who in ("base", "champion") if who in scores]
    return SuiteReport(
        suite=suite.name,
        rows=len(suite.rows),
        scores={who: _estimates(found, metrics, resampler) for who, found in scores.items()},
        comparisons=[
            found for who in against for found in compare(metrics, scores["candidate"], scores[who], who, resampler)
        ],
        slices=[
            SliceScores(
                column=column,
                value=hidden(value),
                rows=int(chosen.sum()),
                scores={
                    who: _means({metric: found.rows[metric][chosen] for metric in metrics}, resampler)
                    for who, found in scores.items()
                },
            )
            for column, value, chosen in slices(suite, slice_columns)
        ],
    )


def compare(
    metrics: Sequence[str], candidate: SuiteScores, other: SuiteScores, against: Who, resampler: Resampler
) -> list[Comparison]:
    """Candidate minus the other model on the same rows, metric by metric."""
    # Rounded: 0.1 + 0.2 against 0.3 is a tie.
    differences = np.stack([np.round(candidate.rows[metric] - other.rows[metric], 12) for metric in metrics], axis=1)
    low, high = resampler.interval(differences)
    return [
        Comparison(
            metric=metric,
            against=against,
            difference=Estimate(mean=float(column.mean()), low=low[at], high=high[at], rows=len(column)),
            p_value=resampler.p_value(column),
            wins=int((column > 0).sum()),
            losses=int((column < 0).sum()),
            ties=int((column == 0).sum()),
        )
        for at, (metric, column) in enumerate(zip(metrics, differences.T, strict=True))
    ]


def slices(suite: Suite, columns: Sequence[str]) -> Iterator[tuple[str, str, NDArray[np.bool_]]]:
    """Column, value and which rows have it, for values of at least five rows; a value that all rows share is no slice.

    The language of the prompt is a slice column of its own where the suite holds both.
    """
    names = list(dict.fromkeys([*columns, "language"]))
    for name in names:
        values = [row.columns.get(name) or (row.language if name == "language" else "") for row in suite.rows]
        for value in sorted(set(values) - {""}):
            chosen = np.asarray([found == value for found in values])
            if SMALLEST_SLICE <= chosen.sum() < len(values):
                yield name, value, chosen


def _check_same_rows(suite: Suite, scores: Mapping[Who, SuiteScores]) -> None:
    if "candidate" not in scores:
        raise InvalidData(f"suite {suite.name!r}: no candidate among the scores, only {sorted(scores)}.")
    wanted = tuple(row.id for row in suite.rows)
    for who, found in scores.items():
        if found.row_ids != wanted:
            missing = len(set(wanted) - set(found.row_ids))
            raise InvalidData(
                f"suite {suite.name!r}: {who} answered other rows than the suite has ({len(found.row_ids)} answered, "
                f"{len(wanted)} in the suite, {missing} of them unanswered); score every model on the same rows."
            )


def _estimates(scores: SuiteScores, metrics: Sequence[str], resampler: Resampler) -> dict[str, Estimate]:
    columns = {metric: scores.rows[metric] for metric in metrics}
    found = _means(columns | {"stop_rate": scores.stopped}, resampler)
    low, high = resampler.interval(scores.answer_tokens[:, None])
    mean = float(scores.answer_tokens.mean())
    found["answer_tokens"] = Estimate(mean=mean, low=low[0], high=high[0], rows=len(scores.row_ids))
    measured = _perplexity(scores, resampler)
    return found | ({"perplexity": measured} if measured else {})


def _means(columns: Mapping[str, Floats], resampler: Resampler) -> dict[str, Estimate]:
    """Means of columns with values in 0..1.

    Rows that all sit on one edge never resample away from it: there the exact bound of a share stands in.
    """
    low, high = resampler.interval(np.stack(list(columns.values()), axis=1))
    estimates = {}
    for at, (name, values) in enumerate(columns.items()):
        mean, rows = float(values.mean()), len(values)
        reach = edge_bound(rows, resampler.confidence)
        bottom = 1 - reach if np.all(values == 1) else low[at]
        top = reach if np.all(values == 0) else high[at]
        estimates[name] = Estimate(mean=mean, low=bottom, high=top, rows=rows)
    return estimates


def _perplexity(scores: SuiteScores, resampler: Resampler) -> Estimate | None:
    """exp of summed nats over summed tokens; rows are drawn, so long references weigh in each draw as they should."""
    measured = scores.reference_tokens > 0
    mean = scores.perplexity
    if mean is None:
        return None
    sums = np.stack([scores.nll[measured], scores.reference_tokens[measured]], axis=1)
    low, high = resampler.interval(sums, lambda means: perplexity(means[:, :1] / means[:, 1:]))
    return Estimate(mean=mean, low=low[0], high=high[0], rows=int(measured.sum()))
