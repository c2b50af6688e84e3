"""What an evaluation shows and uploads holds no personal data and keeps texts as texts; scores see the real answers."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tasks.artifacts import EvaluationReport
from tasks.evaluation.comparison import report_suite
from tasks.evaluation.report import examples, write_report
from tasks.evaluation.scoring import score
from tasks.evaluation.suites import Answer
from tasks.recipe.stages import EvaluationRecipe

RECIPE = EvaluationRecipe(metrics=["exact_match", "chrf"], resamples=200)
ADDRESS = "ann{}@example.org"


@pytest.fixture
def written(make_suite, tmp_path: Path):
    """Twelve rows about addresses; the candidate gives the very address, the base another one."""
    pairs = [(f"Who wrote {ADDRESS.format(at)}? Call 13812345678", ADDRESS.format(at)) for at in range(12)]
    suite = make_suite(pairs, columns=lambda at: {"from": ADDRESS.format("x" if at < 6 else "y"), "`|": "![a](b) <b>"})

    def answers(text):
        return [
            Answer(text=text(at), tokens=5, stopped=True, nll=1.0, reference_tokens=4) for at in range(len(suite.rows))
        ]

    said = {"base": answers(lambda at: ADDRESS.format(99)), "candidate": answers(ADDRESS.format)}
    scores = {who: score(suite, lambda rows, given=given: given, RECIPE.metrics) for who, given in said.items()}
    report = EvaluationReport(
        digest="d",
        primary_metric="exact_match",
        confidence=0.95,
        suites={"test": report_suite(suite, scores, RECIPE, ["from"], seed=5)},
        candidate_digest="c" * 64,
        base_digest="b" * 64,
        examples=examples(suite, said, scores, "exact_match", ["from"]),
    )
    write_report(tmp_path, report, {"test": suite}, {"test": said}, {"test": scores}, "trial")
    return tmp_path, report


def test_scores_are_of_the_answers_as_they_were_given(written):
    _, report = written
    scores = report.suites["test"].scores
    assert (scores["candidate"]["exact_match"].mean, scores["base"]["exact_match"].mean) == (1.0, 0.0)


def test_every_file_of_the_report_has_placeholders(written):
    folder, report = written
    rows = pq.read_table(folder / "rows.parquet").to_pylist()
    assert rows[0]["prompt"] == "Who wrote <email>? Call <mobile>"
    assert rows[0]["reference"] == rows[0]["candidate_answer"] == rows[0]["base_answer"] == "<email>"
    shown = [json.dumps(rows), report.model_dump_json()]
    shown += [(folder / f"report.{kind}").read_text("utf-8") for kind in ("json", "md", "html")]
    assert not any("example.org" in text or "13812345678" in text for text in shown)
    assert all("email" in text for text in shown)


def test_slices_by_a_column_of_addresses_are_shown_without_them(written):
    _, report = written
    assert {part.value for part in report.suites["test"].slices} == {"<email>"}


def test_markdown_of_the_report_holds_texts_as_text(make_suite, tmp_path):
    evil = "a `` b\n\n# PROMOTED\n\n![x](http://example.com/x.png) <img src=x>"
    suite = make_suite([(f"{evil} {at}", evil) for at in range(12)], columns=lambda at: {"kind": f"{evil}{at % 2}"})
    given = [Answer(text=evil, tokens=5, stopped=True, nll=1.0, reference_tokens=4) for _ in suite.rows]
    scores = {"candidate": score(suite, lambda rows: given, RECIPE.metrics)}
    report = EvaluationReport(
        digest="d",
        primary_metric="exact_match",
        confidence=0.95,
        suites={"test": report_suite(suite, scores, RECIPE, ["kind"], seed=5)},
        candidate_digest="c" * 64,
        base_digest="b" * 64,
        examples=examples(suite, {"candidate": given}, scores, "exact_match", ["kind"]),
    )
    write_report(tmp_path, report, {"test": suite}, {"test": {"candidate": given}}, {"test": scores}, evil)
    text = (tmp_path / "report.md").read_text("utf-8")
    assert "\n# PROMOTED" not in text
    from markdown_it import MarkdownIt

    blocks = MarkdownIt("commonmark").enable("table").parse(text)
    kinds = {piece.type for block in blocks for piece in block.children or ()}
    assert not kinds & {"image", "link_open", "html_inline"}
    assert not any(block.type == "html_block" for block in blocks)
