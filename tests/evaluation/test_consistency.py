"""A report that was not made here is read for what cannot be true."""

import pytest

from tasks.artifacts import EvaluationReport
from tasks.evaluation.comparison import report_suite
from tasks.evaluation.consistency import contradictions
from tasks.evaluation.report import report_digest
from tasks.evaluation.scoring import score
from tasks.recipe.stages import EvaluationRecipe

RECIPE = EvaluationRecipe(metrics=["exact_match", "chrf"], resamples=200)


@pytest.fixture
def report(make_suite, say):
    suite = make_suite([(f"where is it {at}",) * 2 for at in range(24)], columns=lambda at: {"kind": str(at % 2)})
    right = {"base": 2, "candidate": 20, "champion": 15}

    def answers(most):
        return say(lambda prompt: prompt if int(prompt.split()[-1]) < most else "no")

    scores = {who: score(suite, answers(most), RECIPE.metrics) for who, most in right.items()}
    return EvaluationReport(
        digest="", primary_metric="exact_match", confidence=0.95,
        suites={"test": report_suite(suite, scores, RECIPE, ["kind"])},
        candidate_digest="c", base_digest="b", champion="desk/1", champion_digest="a", examples=[],
    )  # fmt: skip


def test_a_report_of_our_own_does_not_contradict_itself(report):
    assert contradictions(report) == []
    assert contradictions(EvaluationReport.model_validate_json(report.model_dump_json())) == []


CHANGES = {
    "no suite": lambda content: content["suites"].clear(),
    "rows that never existed": lambda content: content["suites"]["test"].update(rows=160),
    "a candidate that scores better than its differences": lambda content: content["suites"]["test"]["scores"][
        "candidate"
    ]["exact_match"].update(mean=1.0, high=1.0),
    "a difference that the means do not have": lambda content: content["suites"]["test"]["comparisons"][0][
        "difference"
    ].update(mean=0.9),
    "gains without a row that is won": lambda content: content["suites"]["test"]["comparisons"][0].update(
        wins=0, ties=24, losses=0
    ),
    "no comparison's rows": lambda content: content["suites"]["test"]["comparisons"][0].update(wins=1),
    "no base": lambda content: content["suites"]["test"]["scores"].pop("base"),
    "a champion that is not named": lambda content: content.update(champion=""),
    "a primary metric that was not measured": lambda content: content.update(primary_metric="bleu"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_numbers_that_cannot_all_be_true_are_named(report, case):
    content = report.model_dump(mode="json")
    CHANGES[case](content)
    assert contradictions(EvaluationReport.model_validate(content))


@pytest.mark.parametrize(
    "change",
    [
        {"primary_metric": "chrf"},
        {"confidence": 0.9},
        {"champion": "desk/2"},
        {"candidate_digest": "d"},
        {"examples": [{"prompt": "p"}]},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_a_decision_reads_is_in_the_reports_digest(report, change):
    assert report_digest(report.model_copy(update=change)) != report_digest(report)


def test_where_a_report_lies_and_what_it_took_are_not_in_its_digest(report, tmp_path):
    moved = report.model_copy(update={"folder": tmp_path, "reused": True, "asking_seconds": 9.0, "key": "k"})
    assert report_digest(moved) == report_digest(report)
