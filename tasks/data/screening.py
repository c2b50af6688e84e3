"""A data recipe in, the good records of every role out, and every bad row with its reason."""

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from tasks.data import checks, formats, splits
from tasks.data.checks import Action, Entry, Finding, Offence
from tasks.data.encoding import GB18030
from tasks.data.main_memory import MemoryWatch
from tasks.data.reading import read
from tasks.data.records import Message, Record
from tasks.data.rows import Row
from tasks.data.sources import ROLES, Source, SplitRole, combined, expand
from tasks.errors import InvalidData
from tasks.output import personal_data
from tasks.recipe.stages import DataRecipe, PersonalData
from tasks.steps.progress import Advance

LISTED = 20
"""Offenders that a report names for a check; all of the bad ones are in the quarantine file."""


class SourceSummary(BaseModel):
    """What one source turned out to be."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str
    role: SplitRole
    kind: str
    encoding: str
    format: str
    rows: int
    unused_columns: list[str]
    fingerprint: str


class Verdicts:
    """Collects what the checks find: offences leave the data, notes only get into the report."""

    def __init__(self) -> None:
        self.offences: list[Offence] = []
        self.counts: Counter[str] = Counter()
        self._first: dict[str, list[str]] = defaultdict(list)

    def note(self, check: str, source: str, detail: str, count: int = 1) -> None:
        """Count a row that stays, or that was only dropped."""
        self.counts[check] += count
        if len(self._first[check]) < LISTED:
            self._first[check].append(f"{source}: {detail}")

    def quarantine(self, reason: str, source: str, detail: str, row: Any) -> None:
        """Take a row out of the data."""
        self.note(reason, source, detail)
        self.offences.append(Offence(source, reason, detail, row if isinstance(row, dict) else {"value": row}))

    def findings(self, treatment: PersonalData) -> list[Finding]:
        """What every check found, also nothing, in the order of the checks."""
        actions: dict[str, Action] = {"exact_duplicate": "dropped", "near_duplicate": "kept in one split"}
        actions |= dict.fromkeys(("encoding_gb18030", "unused_column", "label_not_in_test"), "reported")
        done: dict[PersonalData, Action] = {
            PersonalData.report: "reported",
            PersonalData.redact: "redacted",
            PersonalData.quarantine: "quarantined",
        }
        actions |= {kind.check: done[treatment] for kind in personal_data.KINDS}
        return [
            Finding(
                check=check,
                meaning=meaning,
                action=actions.get(check, "quarantined"),
                count=self.counts[check],
                offenders=self._first[check],
            )
            for check, meaning in checks.MEANINGS.items()
        ]


class Screened(NamedTuple):
    """Good records by role, what was found on the way, and the sources they came from."""

    records: dict[SplitRole, list[Record]]
    verdicts: Verdicts
    sources: list[SourceSummary]
    rows_read: int

    @property
    def source_digest(self) -> str:
        """The digest of the bytes that were read, as `sources.source_digest` gives it."""
        return combined({role: [each.fingerprint for each in self.sources if each.role == role] for role in ROLES})


def screen(recipe: DataRecipe, advance: Advance) -> Screened:
    """Read every source and take out what is bad; advances by 40 in all.

    Raises InvalidData for a source that cannot be used at all and for more bad rows than the recipe allows.
    """
    verdicts = Verdicts()
    summaries: list[SourceSummary] = []
    records: dict[SplitRole, list[Record]] = {}
    expanded = expand(recipe)
    step = Steps(advance, units=30, of=sum(_size(source) for sources in expanded.values() for source in sources))
    for role in ROLES:
        entries: list[Entry] = []
        for source in expanded[role]:
            summary, parsed = _entries(source, role, recipe, verdicts)
            summaries.append(summary)
            for column in summary.unused_columns:
                verdicts.note("unused_column", summary.name, column)
            entries += parsed
            step(_size(source))
        records[role] = _distinct(entries, verdicts)
    _refuse_unknown_slices(records, recipe)
    _take_out_leaks(records, recipe, verdicts)
    rows_read = sum(summary.rows for summary in summaries)
    _refuse_too_many(verdicts, rows_read, recipe)
    advance(10)
    return Screened(records, verdicts, summaries, rows_read)


def _refuse_unknown_slices(records: dict[SplitRole, list[Record]], recipe: DataRecipe) -> None:
    for column in recipe.slice_columns:
        if not any(record.columns[column] for some in records.values() for record in some):
            raise InvalidData(f"data.slice_columns: no good row has anything in column {column!r}; check its name.")


class Steps:
    """Turns progress in parts of a job into progress in whole units of a bar."""

    def __init__(self, advance: Advance, units: int, of: int) -> None:
        self._advance, self._units, self._of = advance, units, max(of, 1)
        self._done = 0

    def __call__(self, parts: int) -> None:
        """Count parts that are done; advances when they complete a unit."""
        before = self._units * self._done // self._of
        self._done += parts
        if units := self._units * self._done // self._of - before:
            self._advance(units)


def _size(source: Source) -> int:
    return max(source.stat().st_size, 1) if isinstance(source, Path) else 1


def _entries(
    source: Source, role: SplitRole, recipe: DataRecipe, verdicts: Verdicts
) -> tuple[SourceSummary, list[Entry]]:
    """The records of one source that pass the checks a record can pass alone."""
    found = read(source, formats.columns_read(recipe))
    values = [row.values for row in found.rows if not row.fault]
    chosen = formats.detect(values, recipe, found.name, found.unread)
    if found.encoding == GB18030.label:
        verdicts.note("encoding_gb18030", found.name, "the whole file is GB18030, not UTF-8", len(found.rows))
    watch, entries = MemoryWatch(), list[Entry]()
    for row in found.rows:
        if (record := _record(row, chosen, recipe, verdicts)) is not None:
            watch(sum(len(message.content) for message in record.messages))
            entries.append(Entry(row.values, record))
    summary = SourceSummary(
        name=found.name,
        role=role,
        kind=found.kind,
        encoding=found.encoding,
        format=str(chosen),
        rows=len(found.rows),
        unused_columns=formats.unused_columns(values, found.unread, chosen, recipe),
        fingerprint=found.fingerprint,
    )
    return summary, entries


def _record(row: Row, chosen: formats.Format, recipe: DataRecipe, verdicts: Verdicts) -> Record | None:
    """The record of a row, or None when the row went into quarantine."""
    if row.fault:
        verdicts.quarantine(row.check, row.source, row.fault, row.values)
        return None
    try:
        if not isinstance(row.values, dict):
            raise formats.InvalidRecord(_shape(row.values))
        columns = {name: formats.text(row.values.get(name)) for name in recipe.slice_columns}
        record = Record.of(chosen.parse(row.values), row.source, columns)
    except formats.InvalidRecord as fault:
        verdicts.quarantine("schema", row.source, str(fault), row.values)
        return None
    for name, check in checks.RECORD_CHECKS.items():
        if detail := check(record, recipe):
            verdicts.quarantine(name, row.source, detail, row.values)
            return None
    return _personal(record, row, recipe.personal_data, verdicts)


def _shape(values: Any) -> str:
    if isinstance(values, list):
        return f"{len(values)} cells where as many as columns are expected"
    return f"an object expected, found {type(values).__name__}"


def _personal(record: Record, row: Row, treatment: PersonalData, verdicts: Verdicts) -> Record | None:
    """The record as the recipe wants its personal data treated; None when it goes into quarantine."""
    found = sum((personal_data.redact(message.content)[1] for message in record.messages), Counter[str]())
    if not found:
        return record
    if treatment is PersonalData.quarantine:
        verdicts.quarantine(next(iter(found)), row.source, _said(found), row.values)
        return None
    for check, count in found.items():
        verdicts.note(check, row.source, _said({check: count}))
    return _redacted(record) if treatment is PersonalData.redact else record


def _said(found: Mapping[str, int]) -> str:
    return ", ".join(f"{count} × {check.replace('_', ' ')}" for check, count in found.items())


def _redacted(record: Record) -> Record:
    """A record with placeholders for personal data in its messages and columns; its id follows."""
    messages = tuple(
        Message(
            role=message.role,
            content=personal_data.redact(message.content)[0],
            instruction=personal_data.redact(message.instruction)[0],
            input=personal_data.redact(message.input)[0],
        )
        for message in record.messages
    )
    columns = {name: personal_data.redact(value)[0] for name, value in record.columns.items()}
    return Record.of(messages, record.source, columns)


def _distinct(entries: list[Entry], verdicts: Verdicts) -> list[Record]:
    """The records left when those that contradict each other are in quarantine and repeated ones are dropped."""
    bad = checks.contradictory([entry.record for entry in entries])
    for place, detail in bad.items():
        verdicts.quarantine("contradictory", entries[place].record.source, detail, entries[place].row)
    records = [entry.record for place, entry in enumerate(entries) if place not in bad]
    repeated = checks.exact_duplicates(records)
    for place, detail in repeated.items():
        verdicts.note("exact_duplicate", records[place].source, detail)
    return [record for place, record in enumerate(records) if place not in repeated]


def _take_out_leaks(records: dict[SplitRole, list[Record]], recipe: DataRecipe, verdicts: Verdicts) -> None:
    """Quarantine validation records that ask what the test asks, then training records that ask what either asks."""
    for role, against in (("validation", records["test"]), ("train", records["test"] + records["validation"])):
        pool: SplitRole = "validation" if role == "validation" else "train"
        if not against or not records[pool]:
            continue
        found = splits.leaks(records[pool], against, recipe.near_duplicate_similarity)
        for place, detail in sorted(found.items()):
            record = records[pool][place]
            verdicts.quarantine("leak", record.source, detail, record.model_dump(mode="json", include={"messages"}))
        records[pool] = [record for place, record in enumerate(records[pool]) if place not in found]


def _refuse_too_many(verdicts: Verdicts, rows_read: int, recipe: DataRecipe) -> None:
    bad = len(verdicts.offences)
    if bad <= recipe.max_quarantined * rows_read:
        return
    reasons = Counter(offence.reason for offence in verdicts.offences).most_common()
    counts = ", ".join(f"{count} × {reason}" for reason, count in reasons)
    first = "\n".join(f"  {offence.source}: {offence.reason}: {offence.detail}" for offence in verdicts.offences[:5])
    raise InvalidData(
        f"{bad:,} of {rows_read:,} rows are bad ({bad / rows_read:.1%}), at most {recipe.max_quarantined:.1%} may be: "
        f"{counts}. Mend the sources or raise data.max_quarantined. The first ones:\n{first}"
    )
