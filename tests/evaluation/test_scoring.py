import math

import pytest

from tasks.errors import InvalidData, PermanentError
from tasks.evaluation.scoring import score
from tasks.evaluation.suites import Answer, Suite, SuiteRow
from tasks.recipe.stages import MetricName

METRICS = [MetricName.exact_match, MetricName.token_f1]


def test_a_dictionary_is_enough_to_be_scored(make_suite, say):
    suite = make_suite([("capital of France", "Paris"), ("capital of Peru", "Lima"), ("capital of Chad", "N'Djamena")])
    known = {"capital of France": "Paris", "capital of Peru": "it is Lima"}
    scores = score(suite, say(lambda prompt: known.get(prompt, "")), METRICS)
    assert scores.rows["exact_match"].tolist() == [1, 0, 0]
    assert scores.rows["token_f1"].tolist() == pytest.approx([1, 0.5, 0])
    assert scores.corpus == pytest.approx({"exact_match": 1 / 3, "token_f1": 0.5})
    assert scores.row_ids == ("test-0", "test-1", "test-2")
    assert list(scores.rows) == ["exact_match", "token_f1"]


def test_perplexity_weighs_rows_by_their_tokens_and_leaves_out_the_unmeasured(make_suite):
    suite = make_suite([("a", "x"), ("b", "y"), ("c", "z")])
    answers = [
        Answer(text="x", tokens=3, stopped=True, nll=2.0, reference_tokens=1),
        Answer(text="y", tokens=5, stopped=False, nll=4.0, reference_tokens=5),
        Answer(text="z", tokens=7, stopped=True, nll=None, reference_tokens=9),
    ]
    scores = score(suite, lambda rows: answers, METRICS)
    assert scores.perplexity == pytest.approx(math.exp((2 + 4) / (1 + 5)))
    assert scores.stop_rate == pytest.approx(2 / 3)
    assert scores.answer_tokens.mean() == 5


def test_a_model_without_likelihoods_has_no_perplexity(make_suite, say):
    scores = score(make_suite([("a", "x")]), say(lambda prompt: "x", nll=None), METRICS)
    assert scores.perplexity is None


def test_a_diverged_model_has_a_finite_perplexity(make_suite, say):
    scores = score(make_suite([("a", "x")]), say(str, nll=1e6), METRICS)
    assert scores.perplexity == pytest.approx(math.exp(700))


def test_a_suite_without_rows_is_refused(say):
    with pytest.raises(InvalidData, match="'test': it has no rows") as refused:
        score(Suite(name="test", rows=()), say(str), METRICS)
    assert isinstance(refused.value, PermanentError)


def test_one_id_for_two_rows_is_refused(say):
    row = SuiteRow(id="7", messages=({"role": "user", "content": "a"},), reference="x")
    with pytest.raises(InvalidData, match="two rows have the id '7'"):
        score(Suite(name="test", rows=(row, row)), say(str), METRICS)


def test_a_missing_answer_is_refused(make_suite):
    with pytest.raises(InvalidData, match="1 rows were asked, 0 answers"):
        score(make_suite([("a", "x")]), lambda rows: [], METRICS)


def test_broken_logits_are_refused_with_the_row(make_suite, say):
    with pytest.raises(InvalidData, match=r"row 'test-0'.*nan"):
        score(make_suite([("a", "x")]), say(str, nll=float("nan")), METRICS)


def test_the_language_of_a_row_is_what_its_user_wrote():
    def language(*turns: tuple[str, str]) -> str:
        messages = tuple({"role": role, "content": content} for role, content in turns)
        return SuiteRow(id="1", messages=messages, reference="").language

    assert language(("system", "Answer with one line of JSON, please."), ("user", "订单 A-17 在哪里")) == "zh"
    assert language(("system", "请用一行回答"), ("user", "where is order A-17, the 台灯 one")) == "en"


def test_several_turns_are_shown_with_their_roles():
    messages = ({"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"})
    assert SuiteRow(id="1", messages=messages, reference="").prompt == "system: Be brief.\n\nuser: Hi"
