"""The policy decides from numbers alone."""

from pathlib import Path

import pytest

from tasks.artifacts import Comparison, Estimate, EvaluationReport, Parity, SliceScores, SuiteReport
from tasks.errors import InvalidRecipe
from tasks.promotion.gate import Standing, decide
from tasks.promotion.policy import PromotionPolicy, load

SHIPPED = Path(__file__).parents[2] / "mlflow" / "promotion_policy.yaml"


def estimate(mean: float, low: float | None = None, high: float | None = None, rows: int = 200) -> Estimate:
    return Estimate(mean=mean, low=mean if low is None else low, high=mean if high is None else high, rows=rows)


def report(base_low=0.5, champion_low=None, rows=200, confidence=0.95, stop_rate=0.9, slice_scores=None, same=False):
    """Candidate 0.9, base 0.1; with `champion_low`, a champion whose paired interval ends there."""
    scores = {
        "candidate": {"exact_match": estimate(0.9), "stop_rate": estimate(stop_rate)},
        "base": {"exact_match": estimate(0.1)},
    }
    pairs = [("base", base_low)] + ([("champion", champion_low)] if champion_low is not None else [])
    comparisons = [
        Comparison(
            metric="exact_match",
            against=against,
            difference=estimate(low + 0.05, low, low + 0.1),
            p_value=0.01,
            wins=9,
            losses=4,
            ties=0,
        )
        for against, low in pairs
    ]
    slices = [
        SliceScores(
            column="language",
            value=value,
            rows=count,
            scores={who: {"exact_match": estimate(mean)} for who, mean in by.items()},
        )
        for value, count, by in (slice_scores or [])
    ]
    suite = SuiteReport(suite="test", rows=rows, scores=scores, comparisons=comparisons, slices=slices)
    champion = "desk/3" if champion_low is not None else ""
    return EvaluationReport(
        digest="d", examples=[], primary_metric="exact_match", confidence=confidence, suites={"test": suite},
        candidate_digest="c", base_digest="b", champion=champion,
        champion_digest="c" if same else "other" * bool(champion),
    )  # fmt: skip


def parity(top1=1.0, answers=1.0) -> Parity:
    return Parity(prompts=32, tokens=900, mean_kl=1e-6, max_kl=1e-5, top1_agreement=top1, answer_agreement=answers)


def failed(policy: PromotionPolicy, of: EvaluationReport, proof: Parity | None = None, kind: str = "full") -> list[str]:
    return [check.rule for check in decide(policy, of, proof, kind) if not check.passed]


DROP = [("zh", 40, {"candidate": 0.5, "base": 0.2, "champion": 0.7})]
CASES = {
    "a first candidate better than its base": ({}, []),
    "too few rows": ({"rows": 20}, ["min_rows"]),
    "answers that do not end": ({"stop_rate": 0.2}, ["minimum_scores.stop_rate"]),
    "no better than the base": ({"base_low": -0.01}, ["better_than_base"]),
    "exactly as good as the base": ({"base_low": 0.0}, ["better_than_base"]),
    "a little worse than the champion, within the margin": ({"champion_low": -0.02}, []),
    "worse than the champion beyond the margin": ({"champion_low": -0.021}, ["not_worse_than_champion"]),
    "intervals less sure than asked for": ({"confidence": 0.9}, ["better_than_base"]),
    "intervals surer than asked for": ({"confidence": 0.99}, []),
    "the champion's own weights": ({"champion_low": 0.0, "same": True}, ["something_to_gain"]),
    "a slice much worse than the champion": ({"champion_low": 0.1, "slice_scores": DROP}, ["slices"]),
    "the same slice while there is no champion": ({"slice_scores": DROP}, []),
    "a small slice": ({"champion_low": 0.1, "slice_scores": [("zh", 29, DROP[0][2])]}, []),
}


@pytest.mark.parametrize("case", CASES)
def test_the_shipped_policy_decides(case):
    given, rules = CASES[case]
    assert failed(load(SHIPPED), report(**given), parity()) == rules


def test_a_candidate_equal_to_the_champion_is_not_promoted():
    reasons = [
        check.reason
        for check in decide(load(SHIPPED), report(champion_low=0.0, same=True), None, "full")
        if not check.passed
    ]
    assert reasons == ["The candidate has the weights of desk/3: there is nothing to gain."]


def test_a_merge_that_answers_differently_is_refused_and_full_weights_need_no_merge():
    policy = load(SHIPPED)
    assert failed(policy, report(), parity(answers=0.8)) == ["parity"]
    assert failed(policy, report(), None) == []


def test_a_stricter_policy_asks_for_more_than_the_champion():
    policy = PromotionPolicy.model_validate({"better_than_champion": {}})
    assert failed(policy, report(champion_low=0.001)) == []
    assert failed(policy, report(champion_low=0.0)) == ["better_than_champion"]
    assert failed(policy, report()) == ["compared"], "nothing speaks for a first version"


def test_what_was_not_measured_fails_and_says_so():
    policy = PromotionPolicy.model_validate({"minimum_scores": {"bleu": 0.3}, "better_than_base": {"metric": "chrf"}})
    reasons = {check.rule: check.reason for check in decide(policy, report(), None, "full") if not check.passed}
    assert "bleu was not measured on test; measured: exact_match, stop_rate" in reasons["minimum_scores.bleu"]
    assert "test/chrf was not compared with the base" in reasons["better_than_base"]
    assert failed(PromotionPolicy(suite="other", minimum_scores={"bleu": 0.3}), report()) == ["suite"]


def test_a_reason_has_the_numbers():
    (check,) = [
        each
        for each in decide(load(SHIPPED), report(champion_low=-0.03), None, "full")
        if each.rule == "not_worse_than_champion"
    ]
    assert check.reason == (
        "test/exact_match against the champion: +0.020, at 95% between -0.030 and +0.070 on 200 rows "
        "(9 better, 4 worse); the lower end must be -0.020 or more."
    )


def test_every_fault_of_a_policy_is_in_one_message(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text("min_rows: none\nminimum_scores: {perplexity: 3}\nslices: {max_dorp: 1}\nsuites: test\n")
    with pytest.raises(InvalidRecipe) as refused:
        load(path)
    lines = str(refused.value).splitlines()
    assert len(lines) == 4 and all(line.startswith(f"{path}:") for line in lines)
    assert "slices.max_dorp: no such key; allowed are metric, max_drop, min_rows" in str(refused.value)


@pytest.mark.parametrize("text", ["a: [", "- a\n", None])
def test_a_policy_that_is_no_mapping_or_not_there_is_said(tmp_path, text):
    path = tmp_path / "policy.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidRecipe, match=r"policy\.yaml"):
        load(path)


EMPTY = {
    "a suite alone": "suite: test\n",
    "rows alone": "min_rows: 30\n",
    "parity alone": "parity: {}\n",
    "slices alone": "slices: {}\n",
    "minimum scores of nothing": "minimum_scores: {}\n",
    "a minimum of zero": "minimum_scores: {exact_match: 0}\n",
    "a margin that allows everything": "not_worse_than_champion: {margin: 1}\n",
}


@pytest.mark.parametrize("case", EMPTY)
def test_a_policy_under_which_nothing_is_compared_is_refused(tmp_path, case):
    path = tmp_path / "policy.yaml"
    path.write_text(EMPTY[case])
    with pytest.raises(InvalidRecipe) as refused:
        load(path)
    assert str(refused.value).startswith(f"{path}: ") and "better_than_base" in str(refused.value)


@pytest.mark.parametrize("metric", ["perplexity", "answer_tokens", "exact_mach"])
@pytest.mark.parametrize(
    "rule",
    ["minimum_scores: {%s: 0.5}", "better_than_base: {metric: %s}", "slices: {metric: %s}\nbetter_than_base: {}"],
)
def test_a_metric_that_no_report_can_have_is_refused_before_anything_is_trained(tmp_path, rule, metric):
    path = tmp_path / "policy.yaml"
    path.write_text(rule % metric)
    with pytest.raises(InvalidRecipe, match=r"no such metric; there are exact_match|is no score"):
        load(path)


@pytest.mark.parametrize("rule", ["minimum_scores: {bleu: 0.1}", "better_than_base: {}", "not_worse_than_champion: {}"])
def test_one_rule_that_compares_is_enough(tmp_path, rule):
    path = tmp_path / "policy.yaml"
    path.write_text(f"{rule}\n")
    assert load(path).suite == "test"


@pytest.mark.parametrize(
    ("kind", "passes", "said"),
    [
        ("full", True, "Nothing was folded: the version is the trained weights"),
        ("adapter", True, "Nothing was folded: the version is the adapter"),
        ("merged", False, "is a merged model, and no parity is on record"),
        ("", False, "Whether the version was merged is not known"),
    ],
)
def test_a_missing_parity_passes_only_where_nothing_was_folded(kind, passes, said):
    (check,) = [each for each in decide(load(SHIPPED), report(), None, kind) if each.rule == "parity"]
    assert check.passed == passes and said in check.reason


def test_the_weights_of_production_are_compared_as_production_was():
    policy, standing = load(SHIPPED), Standing("desk/4", same_weights=True)
    for of, against in ((report(), "no champion"), (report(champion_low=0.1), "desk/3")):
        checks = {check.rule: check for check in decide(policy, of, parity(), "merged", standing)}
        assert all(check.passed for check in checks.values())
        assert "desk/4 is in production with the same weights" in checks["something_to_gain"].reason
        assert checks["something_to_gain"].reason.endswith(f"with {against}.")
        assert "no champion yet" not in " ".join(check.reason for check in checks.values())
    worse = decide(policy, report(champion_low=-0.5), parity(), "merged", standing)
    assert [check.rule for check in worse if not check.passed] == ["not_worse_than_champion"]


def test_there_is_no_champion_yet_is_said_only_where_production_is_empty():
    reasons = " ".join(check.reason for check in decide(load(SHIPPED), report(), None, "full"))
    assert reasons.count("There is no champion yet.") == 2
    reasons = " ".join(check.reason for check in decide(load(SHIPPED), report(), None, "full", Standing("desk/9")))
    assert "no champion yet" not in reasons and "desk/9 went into production since" in reasons
