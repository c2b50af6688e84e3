"""Answers and references in, a corpus value and one value a row out: `evaluate.Metric` classes that work offline.

Every value lies between 0 and 1, higher is better. Importing `evaluate` takes seconds, so only `scoring` imports this
module, and only when it scores.
"""

import json
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import datasets
import evaluate
import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
from sacrebleu.tokenizers.tokenizer_zh import TokenizerZh

from tasks.evaluation.segmentation import has_cjk, words
from tasks.recipe.stages import MetricName
from tasks.steps.scratch import scratch_folder

Scores = dict[str, Any]


class RowMetric(evaluate.Metric):
    """A metric whose result holds its corpus value under `corpus` and its row values under `rows`."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.__doc__ or "",
            citation="",
            inputs_description="predictions, references: one text a row.",
            features=datasets.Features({"predictions": text, "references": text}),
        )


class ExactMatch(RowMetric):
    """1 where answer and reference are the same text, outer white space aside.

    Where both are JSON, their values are compared: spacing, key order and 1 against 1.0 do not count, true against 1
    does.
    """

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> Scores:
        return _averaged([float(_same(*pair)) for pair in zip(predictions, references, strict=True)])


class TokenF1(RowMetric):
    """Harmonic mean of precision and recall over the bag of words, a CJK character being a word.

    As in SQuAD (Rajpurkar et al. 2016), without its English articles. Texts without any word score by equality.
    """

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> Scores:
        return _averaged([_token_f1(*pair) for pair in zip(predictions, references, strict=True)])


class RougeL(RowMetric):
    """F-measure of the longest common subsequence of words, a CJK character being a word (Lin 2004)."""

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> Scores:
        scorer = RougeScorer(["rougeL"], tokenizer=_Words())
        pairs = zip(predictions, references, strict=True)
        return _averaged([scorer.score(reference, answer)["rougeL"].fmeasure for answer, reference in pairs])


class Bleu(RowMetric):
    """BLEU over 100, sentence BLEU a row (Papineni et al. 2002; sacrebleu, Post 2018).

    Rows whose reference holds CJK are tokenised as `zh`, others as `13a`. Orders longer than every text are left out
    (effective order), so that a perfect one-word answer scores 1; on longer texts that changes nothing for the corpus.
    """

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> Scores:
        chinese, western = TokenizerZh(), Tokenizer13a()
        cutters = [chinese if has_cjk(reference) else western for reference in references]
        answers = [cut(text.strip()) for cut, text in zip(cutters, predictions, strict=True)]
        wanted = [cut(text.strip()) for cut, text in zip(cutters, references, strict=True)]
        bleu = BLEU(tokenize="none", effective_order=True, force=True)
        rows = [bleu.sentence_score(*_one(pair)).score / 100 for pair in zip(answers, wanted, strict=True)]
        return {"corpus": bleu.corpus_score(answers, [wanted]).score / 100, "rows": rows}


class Chrf(RowMetric):
    """chrF over 100: F2 of character n-grams up to 6 (Popović 2015; sacrebleu's defaults)."""

    def _compute(self, predictions: Sequence[str], references: Sequence[str]) -> Scores:
        chrf = CHRF()
        rows = [chrf.sentence_score(*_one(pair)).score / 100 for pair in zip(predictions, references, strict=True)]
        return {"corpus": chrf.corpus_score(list(predictions), [list(references)]).score / 100, "rows": rows}


METRICS: dict[MetricName, type[RowMetric]] = {
    MetricName.exact_match: ExactMatch,
    MetricName.token_f1: TokenF1,
    MetricName.rouge_l: RougeL,
    MetricName.bleu: Bleu,
    MetricName.chrf: Chrf,
}


def load(name: MetricName) -> RowMetric:
    """The metric of that name, holding its rows in memory.

    The library makes a cache folder for every metric, also for one that never writes there: it gets one that is gone
    when this returns, instead of one under the user's home.
    """
    with scratch_folder() as folder:
        return METRICS[name](keep_in_memory=True, cache_dir=str(folder))


class _Words:
    """The tokenizer that rouge-score asks for."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def _one(pair: tuple[str, str]) -> tuple[str, list[str]]:
    return pair[0], [pair[1]]


def _averaged(rows: list[float]) -> Scores:
    return {"corpus": float(np.mean(rows)), "rows": rows}


def _token_f1(answer: str, reference: str) -> float:
    given, wanted = Counter(words(answer)), Counter(words(reference))
    if not given or not wanted:
        return float(answer.strip() == reference.strip())
    return 2 * (given & wanted).total() / (given.total() + wanted.total())


def _same(answer: str, reference: str) -> bool:
    answer, reference = answer.strip(), reference.strip()
    if answer == reference:
        return True
    try:
        return _same_json(_parse(answer), _parse(reference))
    except (ValueError, ArithmeticError, RecursionError):
        # A number may have more digits in its exponent than a Decimal takes.
        return False


def _parse(text: str) -> Any:
    # Decimal keeps long order numbers apart that a float would make equal.
    return json.loads(text, parse_int=Decimal, parse_float=Decimal, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


def _same_json(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same_json(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same_json, one, other))
    return bool(one == other)
