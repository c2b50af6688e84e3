import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.artifacts import EvaluationReport
from tasks.evaluation.comparison import report_suite
from tasks.evaluation.diff import LONGEST, marked
from tasks.evaluation.report import examples, write_report
from tasks.evaluation.scoring import score
from tasks.evaluation.suites import Answer
from tasks.recipe.stages import EvaluationRecipe

RECIPE = EvaluationRecipe(metrics=["exact_match", "bleu"], resamples=200)
NASTY = "<script src=https://example.org/x.js></script> | `x` "


@pytest.fixture
def evaluated(make_suite):
    """Twelve rows: the base is always wrong, the candidate right but for row 3, the champion right on even rows."""
    pairs = [(f"订单 {at} 在哪里" if at % 2 else f"where is order {at}", f'{{"order": {at}}}') for at in range(12)]
    suite = make_suite(pairs, columns=lambda at: {"intent": "refund" if at < 6 else "invoice"})

    def answers(text):
        return [
            Answer(text=text(at, row.reference), tokens=5 + at, stopped=at != 3, nll=1.0, reference_tokens=4)
            for at, row in enumerate(suite.rows)
        ]

    said = {
        "base": answers(lambda at, told: NASTY),
        "candidate": answers(lambda at, told: told if at != 3 else '{"order": 99}'),
        "champion": answers(lambda at, told: told if at % 2 == 0 else "？"),
    }
    scores = {who: score(suite, lambda rows, found=found: found, RECIPE.metrics) for who, found in said.items()}
    return suite, said, scores


@pytest.fixture
def written(evaluated, tmp_path: Path):
    suite, said, scores = evaluated
    report = EvaluationReport(
        digest="d",
        primary_metric="exact_match",
        confidence=0.95,
        suites={"test": report_suite(suite, scores, RECIPE, ["intent"], seed=5)},
        candidate_digest="c" * 64,
        base_digest="b" * 64,
        champion="support-desk version 3",
        champion_digest="a" * 64,
        examples=examples(suite, said, scores, "exact_match", ["intent"]),
    )
    write_report(tmp_path, report, {"test": suite}, {"test": said}, {"test": scores}, "Support desk <3")
    return tmp_path, report


def test_four_files_are_written_and_the_same_report_gives_the_same_bytes(written, evaluated, tmp_path_factory):
    folder, report = written
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json", "report.md", "rows.parquet"]
    suite, said, scores = evaluated
    again = tmp_path_factory.mktemp("again")
    write_report(again, report, {"test": suite}, {"test": said}, {"test": scores}, "Support desk <3")
    assert all(path.read_bytes() == (again / path.name).read_bytes() for path in folder.iterdir())


def test_the_json_holds_the_report_and_no_digest_of_itself(written):
    folder, report = written
    content = json.loads((folder / "report.json").read_text("utf-8"))
    assert content["title"] == "Support desk <3"
    assert content["suites"]["test"] == report.suites["test"].model_dump(mode="json")
    assert not {"digest", "folder", "key", "reused"} & set(content)


def test_the_page_fetches_nothing_and_runs_nothing_that_a_model_wrote(written):
    page = (written[0] / "report.html").read_text("utf-8")
    assert not re.search(r"""<[^>]*(src|href|action)\s*=""", page)
    assert not re.search(r"@import|url\(|fetch\(|<link|<iframe|<img", page)
    assert page.count("<script") == 1
    assert "&lt;script src=https://example.org/x.js&gt;" in page
    assert "<title>Support desk &lt;3</title>" in page


def test_the_page_leads_with_the_verdict_and_shows_plots_and_rows(written):
    page = (written[0] / "report.html").read_text("utf-8")
    assert "Exact match on 12 rows: candidate 0.92 [" in page
    assert "against base 0.00 [0.00, 0.26] and champion 0.50 [" in page
    assert '<span class="better">better</span> than base: +0.917' in page
    assert "11 rows better, 0 worse, 1 equal" in page
    assert page.count("<svg") == 4
    assert page.index("Where the candidate is worst") < page.index("test-3") < page.index("Where the candidate gained")
    assert "<del>3</del><ins>99</ins>" in page
    assert "cut at 8 tokens" in page
    assert "All 12 rows" in page
    assert "language: zh" in page
    assert "订单 3 在哪里" in page


def test_the_markdown_tells_the_same(written):
    text = (written[0] / "report.md").read_text("utf-8")
    assert "# Support desk <3" in text
    assert "**Exact match on 12 rows: candidate 0.92 [" in text
    assert re.search(r"\| Exact match \| 0\.000 \[0\.000, 0\.265\] \| 0\.917 \[", text)
    assert re.search(r"\| language: zh \| 6 \|", text)
    assert "`` <script src=https://example.org/x.js></script> | `x` ``" in text


def test_the_rows_hold_every_answer_and_every_value(written, evaluated):
    scores = evaluated[2]
    rows = pq.read_table(written[0] / "rows.parquet").to_pylist()
    assert len(rows) == 12
    assert rows[3]["id"] == "test-3"
    assert rows[3]["prompt"] == "订单 3 在哪里"
    assert rows[3]["language"] == "zh"
    assert json.loads(rows[3]["columns"]) == {"intent": "refund"}
    assert rows[3]["reference"] == '{"order": 3}'
    assert (rows[3]["base_answer"], rows[3]["candidate_answer"], rows[3]["champion_answer"]) == (
        NASTY,
        '{"order": 99}',
        "？",
    )
    assert (rows[3]["candidate_exact_match"], rows[3]["candidate_stopped"], rows[3]["candidate_tokens"]) == (
        0,
        False,
        8,
    )
    assert [row["candidate_bleu"] for row in rows] == scores["candidate"].rows["bleu"].tolist()


def test_two_suites_of_other_models_fit_one_table_and_one_page(evaluated, make_suite, tmp_path: Path):
    suite, said, scores = evaluated
    other = make_suite([("hello", "hi")], name="extra")
    told = {"candidate": [Answer(text="hi", tokens=1, stopped=True)]}
    their = {"candidate": score(other, lambda rows: told["candidate"], RECIPE.metrics)}
    reports = {"test": report_suite(suite, scores, RECIPE), "extra": report_suite(other, their, RECIPE)}
    report = EvaluationReport(
        digest="",
        primary_metric="exact_match",
        confidence=0.95,
        suites=reports,
        candidate_digest="c",
        base_digest="b",
        examples=[],
    )
    suites, answers = {"test": suite, "extra": other}, {"test": said, "extra": told}
    write_report(tmp_path, report, suites, answers, {"test": scores, "extra": their}, "Two")
    rows = pq.read_table(tmp_path / "rows.parquet").to_pylist()
    assert [row["suite"] for row in rows] == ["test"] * 12 + ["extra"]
    assert (rows[-1]["candidate_nll"], rows[-1]["base_answer"]) == (None, None)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "Suite extra" in page
    assert "Nowhere: every row has full marks." in page


def test_examples_show_gains_from_different_slices(evaluated):
    suite, said, scores = evaluated
    found = examples(suite, said, scores, "exact_match", ["intent"])
    assert len(found) == 3
    assert all(set(row) == {"prompt", "reference", "base", "candidate", "champion"} for row in found)
    assert all(row["candidate"] == row["reference"] != row["base"] for row in found)
    shown = [next(row for row in suite.rows if row.prompt == one["prompt"]) for one in found[:2]]
    assert len({row.columns["intent"] for row in shown}) == 2
    assert len({row.language for row in shown}) == 2
    assert "champion" not in examples(suite, {w: said[w] for w in ("base", "candidate")}, scores, "exact_match")[0]


def test_the_difference_marks_words_and_chinese_characters():
    assert str(marked("我要退货", "我要退款")) == "我要退<del>款</del><ins>货</ins>"
    assert str(marked("red lamp", "red desk lamp")) == "red <del>desk </del>lamp"
    assert str(marked("same <b>", "same <b>")) == "same &lt;b&gt;"
    assert str(marked("", "gone")) == "<del>gone</del>"
    assert str(marked("Sorry!", '{"a": 1}')) == "<ins>Sorry!</ins>"
    long = "a " * LONGEST
    assert str(marked(long, "b")) == long
