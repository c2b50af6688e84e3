"""Row values in, intervals and p-values out: the bootstrap over rows and the paired sign-flip test, both seeded."""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_CELLS = 4_000_000  # Of one chunk: 32 MB, whatever the number of rows.


class Resampler:
    """Rows drawn again and again, the same draws for every column and every model of the same number of rows."""

    def __init__(self, resamples: int, confidence: float, seed: int) -> None:
        self.resamples = resamples
        self.confidence = confidence
        self.seed = seed

    def interval(self, columns: Floats, statistic: Callable[[Floats], Floats] | None = None) -> tuple[Floats, Floats]:
        """Percentile interval (Efron and Tibshirani 1993, chapter 13) of each column's mean: two arrays of shape (k,).

        `columns` is (rows, k). With `statistic`, of what it makes of the means, (resamples, k) to (resamples, m).
        """
        counts = self._counts(len(columns))
        means = np.concatenate([chunk @ columns for chunk in counts]) / len(columns)
        values = means if statistic is None else statistic(means)
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(values, [tail, 1 - tail], axis=0)
        return low, high

    def p_value(self, difference: Floats) -> float:
        """Two-sided p of the mean of paired differences, (rows,), under random signs (Good 2005); 1 where all are 0.

        The observed signs count as one of the draws, so p is never 0.
        """
        changed = difference[difference != 0]
        if not len(changed):
            return 1.0
        seen = abs(changed.sum()) - 1e-9
        random = np.random.default_rng(self.seed)
        extreme = 0
        for size in self._sizes(len(changed)):
            signs = random.integers(0, 2, (size, len(changed)), dtype=np.int8) * 2 - 1
            extreme += int((np.abs(signs @ changed) >= seen).sum())
        return (extreme + 1) / (self.resamples + 1)

    def _counts(self, rows: int) -> Iterator[Floats]:
        """How often each row was drawn, chunks of shape (resamples, rows)."""
        random = np.random.default_rng(self.seed)
        for size in self._sizes(rows):
            drawn = random.integers(0, rows, (size, rows)) + np.arange(size)[:, None] * rows
            yield np.bincount(drawn.ravel(), minlength=size * rows).reshape(size, rows).astype(np.float64)

    def _sizes(self, rows: int) -> Iterator[int]:
        step = max(1, _CELLS // rows)
        for start in range(0, self.resamples, step):
            yield min(step, self.resamples - start)


def edge_bound(rows: int, confidence: float) -> float:
    """How far from the edge the share behind a column of only zeros, or only ones, may lie (Clopper and Pearson 1934).

    >>> round(edge_bound(150, 0.95), 3)
    0.024
    """
    return float(1 - ((1 - confidence) / 2) ** (1 / rows))
