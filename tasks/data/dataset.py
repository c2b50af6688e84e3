"""A data recipe in, validated splits, a quarantine and a report out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts import ValidatedDataset
from tasks.data import quality, splits
from tasks.data.checks import Offence
from tasks.data.page import page
from tasks.data.personal import redact
from tasks.data.records import Record, load_split, write_split
from tasks.data.report import DataReport, markdown, sample
from tasks.data.screening import Screened, Steps, screen
from tasks.data.sources import ROLES, SplitRole, source_digest
from tasks.progress import Advance, silent
from tasks.recipe import DataRecipe, PersonalData
from tasks.store import files_digest

__all__ = ["UNITS", "load_split", "source_digest", "validate_sources"]

UNITS = 100
"""What validate_sources advances by in all."""
SAMPLES = 3


def validate_sources(
    recipe: DataRecipe, folder: Path, seed: int, name: str, advance: Advance = silent
) -> ValidatedDataset:
    """Write the splits, the quarantine and the reports of a recipe's sources into a folder.

    Records lie in the order of their ids, so that neither the order of the sources nor that of their rows matters.
    Raises InvalidData for sources that cannot be read, too many bad rows, or a split without rows.
    """
    screened = screen(recipe, advance)
    divided = _divide(screened, recipe, seed, advance)
    offences = screened.verdicts.offences
    for role in ROLES:
        write_split(folder / f"{role}.jsonl", divided[role])
    _write_quarantine(folder / "quarantine.jsonl", offences, recipe.personal_data is PersonalData.redact)
    made = _noun(screened, divided, recipe, folder, name)
    _write_reports(_report(screened, divided, recipe, made), folder)
    advance(10)
    return made


def _divide(screened: Screened, recipe: DataRecipe, seed: int, advance: Advance) -> dict[SplitRole, list[Record]]:
    """The records of every split, in the order of their ids; advances by 50."""
    pool = screened.records["train"]
    step = Steps(advance, units=50, of=len(pool))
    grouped = splits.near_groups(pool, recipe.near_duplicate_similarity, step)
    for places in grouped:
        for place in places[1:]:
            near = f"nearly the prompt of {pool[places[0]].source}"
            screened.verdicts.note("near_duplicate", pool[place].source, near)
    test = 0.0 if recipe.test else recipe.test_fraction
    validation = 0.0 if recipe.validation else recipe.validation_fraction
    chosen = splits.assign(pool, grouped, test, validation, seed)
    divided = {
        role: [record for record, where in zip(pool, chosen, strict=True) if where == role]
        + (screened.records[role] if role != "train" else [])
        for role in ROLES
    }
    divided["train"] = splits.limited(divided["train"], recipe.limit)
    splits.refuse_empty({role: len(records) for role, records in divided.items()}, recipe, screened.verdicts.offences)
    for label, count in quality.untested_labels(divided["train"], divided["test"]).items():
        screened.verdicts.note("label_not_in_test", f"{label!r}", f"{count:,} training rows")
    return {role: sorted(records, key=lambda record: record.id) for role, records in divided.items()}


def _noun(
    screened: Screened, divided: dict[SplitRole, list[Record]], recipe: DataRecipe, folder: Path, name: str
) -> ValidatedDataset:
    findings = screened.verdicts.findings(recipe.personal_data)
    return ValidatedDataset(
        digest=files_digest({role: folder / f"{role}.jsonl" for role in ROLES}),
        folder=folder,
        name=name,
        format="; ".join(dict.fromkeys(source.format for source in screened.sources)),
        sources=[*recipe.train, *recipe.validation, *recipe.test],
        rows={**{role: len(divided[role]) for role in ROLES}, "quarantine": len(screened.verdicts.offences)},
        findings={finding.check: finding.count for finding in findings},
        source_digest=source_digest(recipe),
    )


def _report(
    screened: Screened, divided: dict[SplitRole, list[Record]], recipe: DataRecipe, made: ValidatedDataset
) -> DataReport:
    return DataReport(
        name=made.name,
        digest=made.digest,
        source_digest=made.source_digest,
        rows_read=screened.rows_read,
        rows=made.rows,
        sources=screened.sources,
        findings=screened.verdicts.findings(recipe.personal_data),
        quality=quality.measure([record for role in ROLES for record in divided[role]]),
        samples=[sample(record) for record in divided["train"][:SAMPLES]],
    )


def _write_reports(report: DataReport, folder: Path) -> None:
    (folder / "report.json").write_text(report.model_dump_json(indent=1), "utf-8")
    (folder / "report.md").write_text(markdown(report), "utf-8")
    (folder / "report.html").write_text(page(report), "utf-8")


def _write_quarantine(path: Path, offences: Sequence[Offence], redacted: bool) -> None:
    # Half a surrogate pair in a bad row is written as the JSON escape it was read from.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
        for offence in offences:
            content = {**offence._asdict(), "row": _redacted(offence.row) if redacted else offence.row}
            stream.write(json.dumps(content, ensure_ascii=False, default=str) + "\n")


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return redact(value)[0]
    if isinstance(value, dict):
        return {name: _redacted(item) for name, item in value.items()}
    return [_redacted(item) for item in value] if isinstance(value, list) else value
