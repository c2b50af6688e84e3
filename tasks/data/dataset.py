"""A data recipe in, validated splits, a quarantine and a report out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.artifacts import ValidatedDataset
from tasks.data import quality, splits
from tasks.data.checks import Offence
from tasks.data.main_memory import gigabytes
from tasks.data.page import page
from tasks.data.records import Record, load_split, write_split
from tasks.data.report import DataReport, markdown, sample
from tasks.data.screening import Screened, Steps, screen
from tasks.data.sources import ROLES, SplitRole, expand, source_digest
from tasks.errors import InvalidData
from tasks.files.digests import files_digest
from tasks.output.escaping import printable
from tasks.output.personal_data import KINDS, hidden
from tasks.recipe.stages import DataRecipe, PersonalData, Recipe
from tasks.steps.progress import Advance, silent

__all__ = ["UNITS", "VERSION", "dataset_inputs", "load_split", "source_digest", "validate_sources"]

VERSION = 3
"""Raised where the same sources and the same recipe give other files."""
UNITS = 100
"""What validate_sources advances by in all."""
SAMPLES = 3
SHOWN = "shown"
"""The folder of what is uploaded: the quarantine without personal data."""
PERSONAL_CHECKS = {kind.check for kind in KINDS}


def dataset_inputs(recipe: Recipe, sources: str) -> dict[str, Any]:
    """What a validated dataset is found by: the bytes of its sources, by their digest, and how they are treated."""
    return {
        "version": VERSION,
        "sources": sources,
        "recipe": recipe.data.model_dump(mode="json", exclude={"train", "validation", "test"}),
        "name": recipe.name,
        "seed": recipe.seed,
    }


def validate_sources(
    recipe: DataRecipe, folder: Path, seed: int, name: str, advance: Advance = silent, sources: str = ""
) -> ValidatedDataset:
    """Write the splits, the quarantine and the reports of a recipe's sources into a folder.

    Records lie in the order of their ids, so that neither the order of the sources nor that of their rows matters.
    `sources` is the digest that the dataset is made for, taken now where it is empty. Raises InvalidData for sources
    that hold other bytes when they are read, that cannot be read, too many bad rows, a split without rows, or too
    little memory.
    """
    try:
        return _validated(recipe, folder, seed, name, advance, sources or source_digest(recipe))
    except MemoryError as fault:
        raise InvalidData(_out_of_memory(recipe)) from fault


def _validated(
    recipe: DataRecipe, folder: Path, seed: int, name: str, advance: Advance, expected: str
) -> ValidatedDataset:
    screened = screen(recipe, advance)
    if screened.source_digest != expected:
        raise InvalidData(
            f"data: the sources changed before they were read: they hold {screened.source_digest[:12]}, and "
            f"{expected[:12]} was to be read. Nothing is kept; run again when nobody writes to them."
        )
    divided = _divide(screened, recipe, seed, advance)
    offences = screened.verdicts.offences
    for role in ROLES:
        write_split(folder / f"{role}.jsonl", divided[role])
    rows = [hidden(offence.row) if recipe.personal_data is PersonalData.redact else offence.row for offence in offences]
    _write_quarantine(folder / "quarantine.jsonl", offences, rows)
    (folder / SHOWN).mkdir()
    _write_quarantine(folder / SHOWN / "quarantine.jsonl", offences, [_shown(offence) for offence in offences])
    made = _noun(screened, divided, recipe, folder, name)
    _write_reports(_report(screened, divided, recipe, made), folder)
    advance(10)
    return made


def _out_of_memory(recipe: DataRecipe) -> str:
    sources = [source for role in expand(recipe).values() for source in role if isinstance(source, Path)]
    size = sum(source.stat().st_size for source in sources)
    return (
        f"the memory does not hold these sources ({gigabytes(size)} of files, packed ones as they lie): the work was "
        "stopped before it was full. All records of a run are held in memory, with short prompts in up to 45 times "
        "their bytes, most of it for the search for near-duplicates: take fewer records, or a machine with more memory."
    )


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
        sources=[printable(source) for source in (*recipe.train, *recipe.validation, *recipe.test)],
        rows={**{role: len(divided[role]) for role in ROLES}, "quarantine": len(screened.verdicts.offences)},
        findings={finding.check: finding.count for finding in findings},
        source_digest=screened.source_digest,
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


def _write_quarantine(path: Path, offences: Sequence[Offence], rows: Sequence[Any]) -> None:
    # Half a surrogate pair in a bad row is written as the JSON escape it was read from.
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
        for offence, row in zip(offences, rows, strict=True):
            content = {**offence._asdict(), "row": row}
            stream.write(json.dumps(content, ensure_ascii=False, default=str) + "\n")


def _shown(offence: Offence) -> Any:
    """The row of an offence as it may leave this machine: without personal data; none where that is the offence."""
    return None if offence.reason in PERSONAL_CHECKS else hidden(offence.row)
