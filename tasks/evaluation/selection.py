"""Scored rows in, the few worth a person's eyes out: examples for the last screen, worst and best for the report."""

from collections.abc import Mapping, Sequence

import numpy as np

from tasks.artifacts import Who
from tasks.evaluation.scoring import SuiteScores
from tasks.evaluation.suites import Answer, Suite
from tasks.output.personal_data import hidden

WHO: tuple[Who, ...] = ("base", "candidate", "champion")


def examples(
    suite: Suite,
    answers: Mapping[Who, Sequence[Answer]],
    scores: Mapping[Who, SuiteScores],
    primary_metric: str,
    slice_columns: Sequence[str] = (),
    count: int = 3,
) -> list[dict[str, str]]:
    """Rows where the candidate gained most over the base, from as many slices as there are, keys as in the report.

    Each has `prompt`, `reference` and one answer a model (`base`, `candidate`, `champion`), personal data replaced.
    """
    found = []
    for at in best(suite, scores, primary_metric, slice_columns, count):
        row = suite.rows[at]
        shown = {"prompt": row.prompt, "reference": row.reference}
        found.append(hidden(shown | {who: answers[who][at].text for who in WHO if who in answers}))
    return found


def best(
    suite: Suite,
    scores: Mapping[Who, SuiteScores],
    primary_metric: str,
    slice_columns: Sequence[str] = (),
    count: int = 6,
) -> list[int]:
    """Rows with the largest gain over the base; among those that gained alike, the ones from slices not yet shown."""
    candidate = scores["candidate"].rows[primary_metric]
    gain = candidate - scores["base"].rows[primary_metric] if "base" in scores else candidate
    rank = [(round(float(gain[at]), 1), round(float(candidate[at]), 1)) for at in range(len(suite.rows))]
    traits: list[set[object]] = [
        {row.language, *((column, row.columns.get(column)) for column in slice_columns)} for row in suite.rows
    ]
    pool = list(range(len(suite.rows)))
    chosen: list[int] = []
    seen: set[object] = set()
    while pool and len(chosen) < count:
        pick = max(pool, key=lambda at: (rank[at], len(traits[at] - seen), -at))
        pool.remove(pick)
        chosen.append(pick)
        seen |= traits[pick]
    return chosen


def worst(scores: Mapping[Who, SuiteScores], primary_metric: str) -> list[int]:
    """Rows without full marks for the candidate, the lowest first; among equals, the lowest by its other metrics."""
    rows = scores["candidate"].rows
    overall = np.sum(list(rows.values()), axis=0)
    wrong = [at for at, value in enumerate(rows[primary_metric]) if value < 1]
    return sorted(wrong, key=lambda at: (rows[primary_metric][at], overall[at], at))
