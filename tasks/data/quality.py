"""Records in, numbers about them out: lengths, languages, balance of labels."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from pydantic import BaseModel, ConfigDict

from tasks.data.records import Record
from tasks.output.personal_data import hidden

MOST_LABELS = 200
LONGEST_LABEL = 60
_CJK = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
_LETTER = re.compile(r"[^\W\d_]")


class Lengths(BaseModel):
    """A distribution of lengths in characters; a bin holds the lengths under its upper bound."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    shortest: int
    median: int
    p95: int
    longest: int
    upper_bounds: list[int]
    counts: list[int]


class Labels(BaseModel):
    """How often each answer occurs where answers are labels; most frequent first."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    counts: dict[str, int]
    imbalance: float


class Quality(BaseModel):
    """Numbers about all records that were kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    prompt_characters: Lengths
    answer_characters: Lengths
    languages: dict[str, float]
    labels: Labels | None


def measure(records: Sequence[Record]) -> Quality:
    """Measure at least one record."""
    prompts = [sum(len(message.content) for message in record.prompt) for record in records]
    return Quality(
        prompt_characters=lengths(prompts),
        answer_characters=lengths([len(record.answer) for record in records]),
        languages=languages(message.content for record in records for message in record.messages),
        labels=labels([record.answer.strip() for record in records]),
    )


def lengths(values: Sequence[int]) -> Lengths:
    """Quantiles and a histogram whose bins double in width.

    >>> lengths([1, 3, 3, 9]).counts
    [1, 2, 0, 1]
    """
    ordered = sorted(values)
    last = len(ordered) - 1
    bounds = [2**power for power in range(1, max(ordered[-1].bit_length(), 1) + 1)]
    low = next((place for place, bound in enumerate(bounds) if ordered[0] < bound), 0)
    bounds = bounds[low:]
    placed = Counter(next(place for place, bound in enumerate(bounds) if value < bound) for value in ordered)
    return Lengths(
        shortest=ordered[0],
        median=ordered[last // 2],
        p95=ordered[int(last * 0.95)],
        longest=ordered[-1],
        upper_bounds=bounds,
        counts=[placed[place] for place in range(len(bounds))],
    )


def languages(texts: Iterable[str]) -> dict[str, float]:
    """Shares of the letters by script; they sum to 1, or are all 0 where there are no letters.

    >>> languages(["ab", "你好"])
    {'Chinese': 0.5, 'Latin': 0.5, 'other': 0.0}
    """
    cjk = latin = letters = 0
    for text in texts:
        cjk += len(_CJK.findall(text))
        latin += len(_LATIN.findall(text))
        letters += len(_LETTER.findall(text))
    total = max(letters, 1)
    return {"Chinese": cjk / total, "Latin": latin / total, "other": max(letters - cjk - latin, 0) / total}


def untested_labels(train: Sequence[Record], test: Sequence[Record]) -> dict[str, int]:
    """Labels of the training answers that no test answer has, with their counts; empty where answers are not labels."""
    known = labels([record.answer.strip() for record in train])
    tested = {record.answer.strip() for record in test}
    return {label: count for label, count in known.counts.items() if label not in tested} if known else {}


def labels(answers: Sequence[str]) -> Labels | None:
    """Counts of the answers when they are few and short enough to be labels, None otherwise.

    >>> labels(["yes", "no", "yes", "yes"]).imbalance
    3.0
    """
    counts = Counter(answers)
    few = len(counts) <= min(MOST_LABELS, len(answers) / 2)
    if not few or max(map(len, counts)) > LONGEST_LABEL:
        return None
    shown: Counter[str] = Counter()
    for answer, count in counts.items():
        shown[hidden(answer)] += count
    ordered = dict(sorted(shown.items(), key=lambda pair: (-pair[1], pair[0])))
    return Labels(counts=ordered, imbalance=max(counts.values()) / min(counts.values()))
