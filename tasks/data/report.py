"""What validation found in, a report for machines and a short one in Markdown out."""

from pydantic import BaseModel, ConfigDict

from tasks.data.checks import Finding
from tasks.data.quality import Quality
from tasks.data.records import Record
from tasks.data.screening import SourceSummary
from tasks.output.escaping import markdown_row, markdown_text
from tasks.output.personal_data import hidden

SHOWN_OFFENDERS = 3
SHOWN_CHARACTERS = 700


class DataReport(BaseModel):
    """Everything a reader wants to know of a validated dataset; report.json is this."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    digest: str
    source_digest: str
    rows_read: int
    rows: dict[str, int]
    sources: list[SourceSummary]
    findings: list[Finding]
    quality: Quality
    samples: list[list[tuple[str, str]]]
    """A few training records as (role, text) turns, shortened, personal data redacted."""


def sample(record: Record) -> list[tuple[str, str]]:
    """A record for the eye: long texts shortened, personal data replaced."""
    turns = [(message.role, hidden(message.content)) for message in record.messages]
    return [(role, text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]} …") for role, text in turns]


def markdown(report: DataReport) -> str:
    """The short report: sources, splits, checks with the first offending lines."""
    return "\n".join(
        [
            f"# Data of {markdown_text(report.name)}",
            "",
            f"{report.rows_read:,} rows read, digest `{report.digest[:16]}`.",
            "",
            *_table(("split", "records"), [(name, f"{count:,}") for name, count in report.rows.items()]),
            *_table(
                ("source", "role", "kind", "encoding", "format", "rows", "columns not used"),
                [
                    (s.name, s.role, s.kind, s.encoding, s.format, f"{s.rows:,}", ", ".join(s.unused_columns))
                    for s in report.sources
                ],
            ),
            *_table(
                ("check", "rows", "what was done", "first lines"),
                [
                    (f.check, f"{f.count:,}", f.action if f.count else "", "; ".join(f.offenders[:SHOWN_OFFENDERS]))
                    for f in report.findings
                ],
            ),
            _numbers(report.quality),
            "",
        ]
    )


def _numbers(quality: Quality) -> str:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in quality.languages.items() if share >= 0.005)
    prompt, answer = quality.prompt_characters, quality.answer_characters
    lines = [
        f"Prompts have {prompt.shortest:,} to {prompt.longest:,} characters (median {prompt.median:,}, "
        f"95 % under {prompt.p95:,}), answers {answer.shortest:,} to {answer.longest:,} (median {answer.median:,}, "
        f"95 % under {answer.p95:,}). Letters: {shares or 'none'}."
    ]
    if labels := quality.labels:
        lines.append(
            f"Answers are {len(labels.counts)} labels; the most frequent is {labels.imbalance:.1f} × the rarest."
        )
    return " ".join(lines)


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    cells = [header, tuple("---" for _ in header), *(tuple(map(markdown_text, row)) for row in rows)]
    return [*map(markdown_row, cells), ""]
