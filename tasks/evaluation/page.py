"""A report with its suites and answers in, one self-contained HTML page out: no fetches, light and dark."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from tasks.artifacts import EvaluationReport, SliceScores, SuiteReport, Who
from tasks.evaluation import formatting, plots
from tasks.evaluation.diff import marked
from tasks.evaluation.page_template import TEMPLATE
from tasks.evaluation.scoring import SuiteScores
from tasks.evaluation.selection import WHO, best, worst
from tasks.evaluation.suites import Answer, Suite
from tasks.output.personal_data import hidden

SHOWN = 6  # Of the worst and of the best rows.
ALL_ROWS = 500  # More than that would make the page heavy; rows.parquet has them.
SLICES = 24


def page(
    report: EvaluationReport,
    suites: Mapping[str, Suite],
    answers: Mapping[str, Mapping[Who, Sequence[Answer]]],
    scores: Mapping[str, Mapping[Who, SuiteScores]],
    title: str,
) -> str:
    """The whole page; everything that a model or a record wrote is escaped, personal data in it replaced."""
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    sections = [
        _section(report, report.suites[name], suite, answers[name], scores[name]) for name, suite in suites.items()
    ]
    return environment.from_string(TEMPLATE).render(
        title=title, report=report, sections=sections, formatting=formatting
    )


def _section(
    report: EvaluationReport,
    found: SuiteReport,
    suite: Suite,
    answers: Mapping[Who, Sequence[Answer]],
    scores: Mapping[Who, SuiteScores],
) -> dict[str, Any]:
    metric = report.primary_metric
    who = [name for name in WHO if name in found.scores]
    columns = list(dict.fromkeys(part.column for part in found.slices))
    bad, good = worst(scores, metric)[:SHOWN], best(suite, scores, metric, columns, SHOWN)
    every = list(range(len(suite.rows))) if len(suite.rows) <= ALL_ROWS else []
    rows = {at: _row(at, suite, answers, scores, metric) for at in {*bad, *good, *every}}
    return {
        "name": suite.name,
        "report": found,
        "who": who,
        "verdict": formatting.verdict(report, found),
        "primary": formatting.primary(report, found),
        "corpus": {name: scores[name].corpus for name in who},
        "plots": {name: Markup(svg) for name, svg in _plots(found, scores, who, metric).items()},
        "worst": [rows[at] for at in bad],
        "best": [rows[at] for at in good],
        "rows": [rows[at] for at in every],
    }


def _plots(found: SuiteReport, scores: Mapping[Who, SuiteScores], who: Sequence[Who], primary: str) -> dict[str, str]:
    metrics = [*scores["candidate"].rows, "stop_rate"]
    groups = [
        [plots.Line(formatting.label(metric), name, found.scores[name][metric]) for name in who] for metric in metrics
    ]
    drawn = {
        "scores": plots.dot_plot("Scores with their intervals", groups, (0, 1)),
        "lengths": plots.histogram(
            "Answers by length in tokens", {name: list(scores[name].answer_tokens) for name in who}
        ),
    }
    if found.comparisons:
        drawn["differences"] = plots.dot_plot(
            "Candidate minus the others, the same rows",
            [
                [
                    plots.Line(formatting.label(c.metric), c.against, c.difference)
                    for c in found.comparisons
                    if c.metric == metric
                ]
                for metric in scores["candidate"].rows
            ],
            plots.signed_span([comparison.difference for comparison in found.comparisons]),
            signed=True,
        )
    if found.slices:
        groups = [_slice_lines(part, who, primary) for part in found.slices[:SLICES]]
        drawn["slices"] = plots.dot_plot("Slices by the primary metric", groups, (0, 1))
    return drawn


def _slice_lines(part: SliceScores, who: Sequence[Who], metric: str) -> list[plots.Line]:
    return [plots.Line(f"{part.column}: {part.value}", name, part.scores[name][metric]) for name in who]


def _row(
    at: int,
    suite: Suite,
    answers: Mapping[Who, Sequence[Answer]],
    scores: Mapping[Who, SuiteScores],
    metric: str,
) -> dict[str, Any]:
    row = suite.rows[at]
    right = {who: found.rows[metric][at] >= 1 for who, found in scores.items()}
    rivals = [found.rows[metric][at] for who, found in scores.items() if who != "candidate"]
    candidate = scores["candidate"].rows[metric][at]
    groups = ["right" if right["candidate"] else "wrong"]
    groups += ["gained"] * any(candidate > value for value in rivals) + ["lost"] * any(
        candidate < value for value in rivals
    )
    texts = {who: hidden(answers[who][at].text) for who in WHO if who in answers}
    reference = hidden(row.reference)
    return {
        "id": row.id,
        "prompt": hidden(row.prompt),
        "reference": reference,
        "columns": hidden(row.columns),
        "groups": " ".join(groups),
        "answers": [
            {
                "who": who,
                "right": right[who],
                "score": float(scores[who].rows[metric][at]),
                "answer": answers[who][at],
                "text": marked(text, reference) if who == "candidate" else text,
            }
            for who, text in texts.items()
        ],
    }
