"""What a person should look at after a retraining and no table shows: what was cut, not used, or not covered."""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tasks.artifacts import TokenizedDataset, TrainedWeights, ValidatedDataset

if TYPE_CHECKING:
    from flows.retrain import Retrained

CHECKS = ("unused_column", "label_not_in_test")
SHOWN = 5
WHOLE_PASS = 0.95
"""Of the training tokens; a training that saw fewer is said to have stopped within its first pass."""


def notices(done: "Retrained") -> list[str]:
    """One line per loss; empty where everything was used."""
    return [*of_dataset(done.dataset), *_lengths(done.tokenized), *_passes(done.weights, done.tokenized)]


def of_dataset(dataset: ValidatedDataset) -> Iterator[str]:
    """Columns that nothing reads, labels that no test row has."""
    if not any(dataset.findings.get(check) for check in CHECKS):
        return
    for finding in json.loads(dataset.path("report.json").read_text("utf-8"))["findings"]:
        if finding["check"] in CHECKS and finding["count"]:
            more = finding["count"] - SHOWN
            rest = f"; and {more} more in the data report" if more > 0 else ""
            yield f"{finding['meaning']}: {'; '.join(finding['offenders'][:SHOWN])}{rest}."


def _lengths(tokenized: TokenizedDataset) -> Iterator[str]:
    longest = f" (prompt.max_length: {tokenized.max_length} tokens)" if tokenized.max_length else ""
    for split, count in tokenized.truncated.items():
        if count:
            rows = tokenized.rows[split]
            yield f"{count:,} of {rows:,} {split} answers were cut at the longest length ({count / rows:.0%}){longest}."
    for split, count in tokenized.dropped.items():
        if count:
            yield f"{count:,} {split} records were left out: their prompts alone are too long{longest}."


def _passes(weights: TrainedWeights, tokenized: TokenizedDataset) -> Iterator[str]:
    tokens = tokenized.tokens.get("train", 0)
    share = weights.tokens / tokens if tokens else 1.0
    if 0 < share < WHOLE_PASS:
        more = (
            "validation got no better, so training.early_stopping_patience ended it"
            if weights.stopped_early
            else "raise training.max_steps or training.epochs to use them all"
        )
        yield f"{weights.steps:,} steps are {share:.0%} of one pass over the training records: {more}."
