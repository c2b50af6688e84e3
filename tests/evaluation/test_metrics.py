import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from tasks.evaluation.metrics import METRICS, load
from tasks.evaluation.segmentation import cjk_share, pieces, words
from tasks.recipe.stages import MetricName


def rows(name: str, pairs: list[tuple[str, str]]) -> list[float]:
    answers, references = zip(*pairs, strict=True)
    return load(MetricName(name)).compute(predictions=list(answers), references=list(references))["rows"]


def corpus(name: str, pairs: list[tuple[str, str]]) -> float:
    answers, references = zip(*pairs, strict=True)
    return load(MetricName(name)).compute(predictions=list(answers), references=list(references))["corpus"]


def test_every_metric_a_recipe_can_name_is_there():
    assert set(METRICS) == set(MetricName)
    assert len(METRICS) == 5


@pytest.mark.parametrize("name", list(MetricName))
def test_the_right_answer_scores_one_and_nothing_scores_zero_also_in_chinese(name: str):
    pairs = [("refund", "refund"), ("退款", "退款"), ("", "refund"), ("", "退款")]
    assert rows(name, pairs) == pytest.approx([1, 1, 0, 0])


def test_exact_match_ignores_outer_white_space_and_nothing_else():
    pairs = [(" Paris\n", "Paris"), ("paris", "Paris"), ("Paris.", "Paris")]
    assert rows("exact_match", pairs) == [1, 0, 0]
    assert corpus("exact_match", pairs) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("answer", "reference", "equal"),
    [
        ('{"b": [1, 2], "a": "x"}', '{"a":"x","b":[1,2.0]}', True),
        ('{"a": "退款"}', '{"a": "\\u9000\\u6b3e"}', True),
        ('{"a": true}', '{"a": 1}', False),
        ('{"a": 1}', '{"a": "1"}', False),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', False),
        ('{"a": 1, "b": 2}', '{"a": 1}', False),
        ('{"a": 9007199254740993}', '{"a": 9007199254740992}', False),
        ('{"a": NaN}', '{"a":  NaN}', False),
        ('```{"a": 1}```', '{"a": 1}', False),
        ("007", "7", False),
        ("[" * 100_000, "[]", False),
        ("1e99999999999999999999", "1", False),
    ],
)
def test_exact_match_compares_json_by_value(answer: str, reference: str, equal: bool):
    assert rows("exact_match", [(answer, reference)]) == [float(equal)]


def test_token_f1_counts_words_and_chinese_characters():
    # Two of three given words are wanted, two of four wanted are given: 2 * 2 / (3 + 4).
    assert rows("token_f1", [("the red lamp", "a Red desk lamp!")]) == pytest.approx([4 / 7])
    # 我要退款 against 我想退款: three of four characters on both sides.
    assert rows("token_f1", [("我要退款", "我想退款")]) == pytest.approx([0.75])
    assert rows("token_f1", [("no no no", "no")]) == pytest.approx([0.5])
    assert rows("token_f1", [("+", "+"), ("-", "+")]) == [1, 0]


def test_rouge_l_is_rouge_score_on_english_and_by_characters_on_chinese():
    answer, reference = "the lamp on my desk is broken", "my desk lamp is broken today"
    theirs = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    assert rows("rouge_l", [(answer, reference)]) == pytest.approx([theirs])
    assert RougeScorer(["rougeL"]).score("我想退款", "我要退款")["rougeL"].fmeasure == 0
    # Longest common subsequence 我退款: 3 of 4 on both sides; the order counts.
    assert rows("rouge_l", [("我要退款", "我想退款"), ("款退要我", "我想退款")]) == pytest.approx([0.75, 0.25])


def test_bleu_is_sacrebleu_with_the_tokenizer_of_the_reference():
    english = [("the cat sat on the mat today", "the cat sat on a mat today"), ("a b c d e", "a b c d f")]
    answers, references = [list(side) for side in zip(*english, strict=True)]
    assert corpus("bleu", english) == pytest.approx(sacrebleu.corpus_bleu(answers, [references]).score / 100)
    for value, (answer, reference) in zip(rows("bleu", english), english, strict=True):
        assert value == pytest.approx(sacrebleu.sentence_bleu(answer, [reference]).score / 100)
    answer, reference = "我上周买的台灯坏了，请退款", "我上周买的台灯坏了，请换货"
    zh = sacrebleu.sentence_bleu(answer, [reference], tokenize="zh").score / 100
    assert rows("bleu", [(answer, reference)]) == pytest.approx([zh])
    assert zh > 0.5 > sacrebleu.sentence_bleu(answer, [reference]).score / 100


def test_a_one_word_label_can_reach_full_bleu():
    assert corpus("bleu", [("refund", "refund"), ("cancel", "cancel")]) == pytest.approx(1)
    assert corpus("bleu", [("refund", "refund"), ("refund", "cancel")]) == pytest.approx(0.5)


def test_chrf_is_sacrebleu_over_a_hundred():
    pairs = [("the lamp is broken", "the lamps are broken"), ("请退款", "请给我退款")]
    answers, references = [list(side) for side in zip(*pairs, strict=True)]
    assert corpus("chrf", pairs) == pytest.approx(sacrebleu.corpus_chrf(answers, [references]).score / 100)
    theirs = [sacrebleu.sentence_chrf(answer, [reference]).score / 100 for answer, reference in pairs]
    assert rows("chrf", pairs) == pytest.approx(theirs)


def test_words_split_by_script():
    assert words("Order_A-17 für 退款ok") == ["order", "a", "17", "für", "退", "款", "ok"]
    text = "Refund,  订单\nA-17 😀!"
    assert "".join(pieces(text)) == text
    assert cjk_share("订单 A") == pytest.approx(2 / 3)
    assert cjk_share("?!") == 0


def test_five_metrics_over_150_rows_take_under_three_seconds():
    random = np.random.default_rng(0)
    vocabulary = ["refund", "order", "lamp", "订单", "退款", "priority", "high"]
    texts = [" ".join(random.choice(vocabulary, 30)) for _ in range(300)]
    start = time.process_time()
    for name in MetricName:
        load(name).compute(predictions=texts[:150], references=texts[150:])
    assert time.process_time() - start < 3


def test_metrics_leave_nothing_in_the_home_folder_and_light_modules_bring_no_torch(tmp_path: Path):
    code = (
        "import sys, tasks.evaluation.report, tasks.evaluation.comparison, tasks.evaluation.scoring\n"
        "assert not {'torch', 'evaluate', 'prefect', 'mlflow', 'matplotlib'} & set(sys.modules)\n"
        "from tasks.evaluation.metrics import METRICS, load\n"
        "assert all(load(name).compute(predictions=['a'], references=['a'])['corpus'] > 0.99 for name in METRICS)\n"
    )
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir(), temporary.mkdir()
    environment = os.environ | {"HOME": str(home), "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_HOME", None)
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=Path(__file__).parents[2])
    assert list(home.rglob("*")) == []
    assert not list(temporary.glob("tuneline-*"))
