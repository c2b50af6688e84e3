import itertools
import math

import numpy as np
import pytest

from tasks.errors import InvalidData
from tasks.evaluation.comparison import report_suite
from tasks.evaluation.resampling import Resampler, edge_bound
from tasks.evaluation.scoring import SuiteScores, score
from tasks.recipe.stages import EvaluationRecipe

RECIPE = EvaluationRecipe(metrics=["exact_match", "token_f1"], resamples=2000)


@pytest.fixture
def suite_of(make_suite):
    """A suite of n numbered prompts whose reference is the prompt itself; every third is Chinese."""

    def make(rows: int, **kwargs):
        return make_suite(
            [(f"订单在哪里 {at}" if at % 3 == 0 else f"where is it {at}",) * 2 for at in range(rows)], **kwargs
        )

    return make


def right_up_to(share: float):
    """A model that is right on that share of the rows, spread evenly by the number at the prompt's end."""
    return lambda prompt: prompt if int(prompt.split()[-1]) * 7 % 100 < share * 100 else "wrong"


def scored(suite, say, share: float, **kwargs) -> SuiteScores:
    return score(suite, say(right_up_to(share), **kwargs), RECIPE.metrics)


def test_a_real_difference_is_found_with_its_size_and_its_rows(suite_of, say):
    suite = suite_of(100)
    report = report_suite(suite, {"base": scored(suite, say, 0.2), "candidate": scored(suite, say, 0.8)}, RECIPE)
    found = report.comparisons[0]
    assert (found.metric, found.against, found.wins, found.losses, found.ties) == ("exact_match", "base", 60, 0, 40)
    assert found.difference.mean == pytest.approx(0.6)
    assert 0.45 < found.difference.low < 0.6 < found.difference.high < 0.75
    assert found.p_value == pytest.approx(1 / 2001)


def test_equal_models_differ_by_nothing(suite_of, say):
    suite = suite_of(50)
    same = scored(suite, say, 0.5)
    report = report_suite(suite, {"base": same, "candidate": same, "champion": same}, RECIPE)
    assert len(report.comparisons) == 4
    for found in report.comparisons:
        assert (found.difference.mean, found.difference.low, found.difference.high) == (0, 0, 0)
        assert (found.p_value, found.wins, found.losses, found.ties) == (1.0, 0, 0, 50)


def test_a_difference_by_chance_is_not_taken_for_one(suite_of, say):
    suite = suite_of(100)
    better_on = {"base": [1, 2, 4, 5], "candidate": [7, 8, 10, 11, 13]}
    scores = {
        who: score(suite, say(lambda text, on=on: text if int(text.split()[-1]) in on else "wrong"), RECIPE.metrics)
        for who, on in better_on.items()
    }
    found = report_suite(suite, scores, RECIPE).comparisons[0]
    assert (found.wins, found.losses) == (5, 4)
    assert found.difference.low < 0 < found.difference.high
    assert found.p_value > 0.5


def test_the_sign_flip_p_is_near_the_exact_one():
    difference = np.array([0.5, 0.25, 1.0, -0.25, 0.75, 0.0, 0.5])
    flips = [abs(np.dot(signs, difference)) for signs in itertools.product([-1, 1], repeat=7)]
    exact = np.mean(np.array(flips) >= difference.sum() - 1e-9)
    assert Resampler(20_000, 0.95, seed=3).p_value(difference) == pytest.approx(exact, abs=0.01)


def test_intervals_shrink_with_rows_and_grow_with_confidence(suite_of, say):
    def width(rows: int, confidence: float) -> float:
        suite = suite_of(rows)
        recipe = RECIPE.model_copy(update={"confidence": confidence})
        found = report_suite(suite, {"candidate": scored(suite, say, 0.6)}, recipe).scores["candidate"]["exact_match"]
        assert found.low < found.mean < found.high
        return found.high - found.low

    assert width(400, 0.95) == pytest.approx(width(100, 0.95) / 2, rel=0.1)
    assert width(100, 0.99) > width(100, 0.95) > width(100, 0.8)


def test_the_interval_of_a_share_is_near_the_normal_one():
    values = np.array([1.0] * 60 + [0.0] * 40)[:, None]
    low, high = Resampler(5000, 0.95, seed=0).interval(values)
    reach = 1.96 * math.sqrt(0.6 * 0.4 / 100)
    assert (low[0], high[0]) == pytest.approx((0.6 - reach, 0.6 + reach), abs=0.015)


def test_all_right_or_all_wrong_does_not_claim_certainty(suite_of, say):
    suite = suite_of(20)
    report = report_suite(suite, {"base": scored(suite, say, 0), "candidate": scored(suite, say, 1)}, RECIPE)
    candidate, base = report.scores["candidate"]["exact_match"], report.scores["base"]["exact_match"]
    assert edge_bound(20, 0.95) == pytest.approx(1 - 0.025 ** (1 / 20))
    assert (candidate.low, candidate.high) == pytest.approx((0.025 ** (1 / 20), 1))
    assert (base.low, base.high) == pytest.approx((0, edge_bound(20, 0.95)))


def test_the_same_seed_gives_the_same_report_and_chunks_do_not_change_it(suite_of, say, monkeypatch):
    suite = suite_of(60)
    scores = {"base": scored(suite, say, 0.3), "candidate": scored(suite, say, 0.6)}
    first = report_suite(suite, scores, RECIPE, seed=1)
    assert report_suite(suite, scores, RECIPE, seed=1) == first
    assert report_suite(suite, scores, RECIPE, seed=2) != first
    monkeypatch.setattr("tasks.evaluation.resampling._CELLS", 60 * 100)
    assert report_suite(suite, scores, RECIPE, seed=1).scores == first.scores


def test_perplexity_has_an_interval_over_rows(make_suite, suite_of, say):
    suite = suite_of(30)
    report = report_suite(suite, {"candidate": scored(suite, say, 1, nll=4.0)}, RECIPE)
    found = report.scores["candidate"]
    assert (found["perplexity"].mean, found["perplexity"].low) == pytest.approx((math.e, math.e))
    assert found["stop_rate"].mean == 1
    assert found["answer_tokens"].mean == 4
    assert (
        "perplexity"
        not in report_suite(suite, {"candidate": scored(suite, say, 1, nll=None)}, RECIPE).scores["candidate"]
    )


def test_slices_are_values_of_five_rows_and_the_language_by_itself(suite_of, say):
    suite = suite_of(30, columns=lambda at: {"intent": "rare" if at < 4 else ("refund" if at % 2 else "invoice")})
    report = report_suite(suite, {"candidate": scored(suite, say, 0.5)}, RECIPE, ["intent"])
    assert [(part.column, part.value, part.rows) for part in report.slices] == [
        ("intent", "invoice", 13),
        ("intent", "refund", 13),
        ("language", "en", 20),
        ("language", "zh", 10),
    ]
    chinese = [right_up_to(0.5)(row.prompt) == row.reference for row in suite.rows if row.language == "zh"]
    assert report.slices[3].scores["candidate"]["exact_match"].mean == pytest.approx(np.mean(chinese))
    assert set(report.slices[3].scores["candidate"]) == {"exact_match", "token_f1"}


def test_a_value_that_every_row_has_is_no_slice(make_suite, say):
    suite = make_suite([(f"where is it {at}",) * 2 for at in range(10)], columns=lambda at: {"source": "mail"})
    assert report_suite(suite, {"candidate": scored(suite, say, 0.5)}, RECIPE, ["source"]).slices == []


def test_other_rows_are_refused(suite_of, say):
    suite, shorter = suite_of(10), suite_of(9)
    scores = {"candidate": scored(suite, say, 1), "base": scored(shorter, say, 1)}
    with pytest.raises(InvalidData, match=r"base answered other rows.*1 of them unanswered"):
        report_suite(suite, scores, RECIPE)


def test_an_empty_suite_and_a_missing_candidate_are_refused(suite_of, say):
    suite = suite_of(5)
    with pytest.raises(InvalidData, match="has no rows"):
        report_suite(suite.model_copy(update={"rows": ()}), {"candidate": scored(suite, say, 1)}, RECIPE)
    with pytest.raises(InvalidData, match="no candidate"):
        report_suite(suite, {"base": scored(suite, say, 1)}, RECIPE)
