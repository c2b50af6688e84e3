"""A report, its suites and its answers in, four files out: report.json, report.md, report.html and rows.parquet."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts import EvaluationReport, SuiteReport, Who
from tasks.evaluation import formatting
from tasks.evaluation.page import page
from tasks.evaluation.scoring import SuiteScores
from tasks.evaluation.selection import WHO, examples
from tasks.evaluation.suites import Answer, Suite
from tasks.output.escaping import markdown_code, markdown_row, markdown_text
from tasks.output.personal_data import hidden
from tasks.steps.store import digest

__all__ = ["examples", "report_digest", "write_report"]

Answers = Mapping[str, Mapping[Who, Sequence[Answer]]]
Scores = Mapping[str, Mapping[Who, SuiteScores]]


def report_digest(report: EvaluationReport) -> str:
    """Digest of everything that a decision may read: whom it compares, by which metric, every number, every example."""
    return digest(report.model_dump(mode="json", exclude={"key", "digest", "folder", "reused", "asking_seconds"}))


def write_report(
    folder: Path, report: EvaluationReport, suites: Mapping[str, Suite], answers: Answers, scores: Scores, title: str
) -> None:
    """Write the report's files into `folder`; the same report gives the same bytes.

    `answers` and `scores` are by suite and by model, in the order of the suite's rows. All four files are for others to
    see: personal data is replaced in each. The answers as they were given stay in the step that asked for them.
    """
    # The manifest knows these; the report is a step's content and cannot hold its own digest.
    content = report.model_dump(mode="json", exclude={"key", "digest", "folder", "reused"})
    (folder / "report.json").write_text(json.dumps({"title": title} | content, ensure_ascii=False, indent=1), "utf-8")
    (folder / "report.md").write_text(markdown(report, title), "utf-8")
    (folder / "report.html").write_text(page(report, suites, answers, scores, title), "utf-8")
    _write_rows(folder / "rows.parquet", suites, answers, scores)


def markdown(report: EvaluationReport, title: str) -> str:
    """The verdict, the scores, the comparisons and the slices, for a run page."""
    parts = [f"# {markdown_text(title)}"]
    for name, suite in report.suites.items():
        parts.append(f"## Suite {name}\n\n**{formatting.verdict(report, suite)}.**")
        parts.append(
            "\n".join(f"- Candidate: {formatting.reading(found)}." for found in formatting.primary(report, suite))
        )
        parts.append(_table(*_score_table(suite)))
        if suite.slices:
            parts.append(f"### Slices, by {formatting.label(report.primary_metric)}")
            parts.append(_table(*_slice_table(suite, report.primary_metric)))
    if report.examples:
        parts.append("## Rows")
        parts += ["\n".join(f"- **{key}**: {_quoted(text)}" for key, text in row.items()) for row in report.examples]
    parts.append(
        f"Intervals hold {report.confidence:.0%} (bootstrap over rows). Every row and answer: `rows.parquet`; "
        "plots and answers side by side: `report.html`."
    )
    return "\n\n".join(part for part in parts if part) + "\n"


def _score_table(suite: SuiteReport) -> tuple[list[str], Iterator[list[str]]]:
    shown = [who for who in WHO if who in suite.scores]
    metrics = list(suite.scores["candidate"])
    return ["metric", *shown], (
        [formatting.label(metric), *(_cell(metric, suite.scores[who].get(metric)) for who in shown)]
        for metric in metrics
    )


def _slice_table(suite: SuiteReport, metric: str) -> tuple[list[str], Iterator[list[str]]]:
    shown = [who for who in WHO if who in suite.scores]
    return ["slice", "rows", *shown], (
        [
            f"{part.column}: {part.value}",
            str(part.rows),
            *(_cell(metric, part.scores[who].get(metric)) for who in shown),
        ]
        for part in suite.slices
    )


def _cell(metric: str, estimate: Any) -> str:
    return f"{formatting.number(metric, estimate.mean)} {formatting.interval(metric, estimate)}" if estimate else ""


def _table(head: Sequence[str], rows: Iterator[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(markdown_row(map(markdown_text, line)) for line in lines)


def _quoted(text: str) -> str:
    """One line, short enough for a page."""
    line = " ".join(text.split())
    return markdown_code(line if len(line) <= 300 else f"{line[:299]}…")


def _write_rows(path: Path, suites: Mapping[str, Suite], answers: Answers, scores: Scores) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = [pa.table(_columns(suite, answers[name], scores[name])) for name, suite in suites.items()]
    pq.write_table(pa.concat_tables(tables, promote_options="default"), path)


def _columns(
    suite: Suite, answers: Mapping[Who, Sequence[Answer]], scores: Mapping[Who, SuiteScores]
) -> dict[str, Any]:
    """Columns of one suite, one value a row; a model's are named after it."""
    import pyarrow as pa

    found: dict[str, Any] = {
        "suite": [suite.name] * len(suite.rows),
        "id": [row.id for row in suite.rows],
        "language": [row.language for row in suite.rows],
        "columns": [json.dumps(hidden(row.columns), ensure_ascii=False) for row in suite.rows],
        "prompt": [hidden(row.prompt) for row in suite.rows],
        "reference": [hidden(row.reference) for row in suite.rows],
    }
    for who in (who for who in WHO if who in answers):
        found[f"{who}_answer"] = [hidden(answer.text) for answer in answers[who]]
        found[f"{who}_tokens"] = [answer.tokens for answer in answers[who]]
        found[f"{who}_stopped"] = [answer.stopped for answer in answers[who]]
        found[f"{who}_nll"] = pa.array([answer.nll for answer in answers[who]], pa.float64())
        found[f"{who}_reference_tokens"] = [answer.reference_tokens for answer in answers[who]]
        found |= {f"{who}_{metric}": values for metric, values in scores[who].rows.items()}
    return found
