"""What reading gives: each row as it came with its place, and what the source turned out to be."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from tasks.errors import InvalidData

LONGEST_LINE = 64 << 20
"""Characters; a longer line is not one record."""
MOST_BLANK_LINES = 1_000_000
"""One after the other; more are no text."""
DEEPEST = 100
"""Lists and objects inside each other; Python gives up at about a thousand, and no format of records needs ten."""


class Row(NamedTuple):
    """One row as it came; `values` is not a dictionary where the file holds something else."""

    source: str
    values: Any
    fault: str = ""
    """Why the row cannot be used at all; empty for a row that can."""
    check: str = "not_json"
    """The check that a fault counts for."""


class Rows(NamedTuple):
    """The rows of one source and how they were encoded."""

    name: str
    kind: str
    encoding: str
    rows: list[Row]
    unread: tuple[str, ...] = ()
    """Columns that the file has and that were not read."""
    fingerprint: str = ""
    """Digest of the bytes that were read, or a hub dataset with its commit: what `source_digest` counts it by."""


def row_of(source: str, values: Any) -> Row:
    """A row, faulty where it is nested too deep to be looked through."""
    if isinstance(values, dict | list) and _deeper(values, DEEPEST):
        return Row(source, {"text": "(not shown)"}, f"nested deeper than {DEEPEST} levels", "schema")
    return Row(source, values)


def _deeper(values: Any, most: int) -> bool:
    level = [values]
    for _ in range(most):
        level = [item for value in level for item in _inside(value)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Iterator[Any]:
    items = value.values() if isinstance(value, dict) else value
    return (item for item in items if isinstance(item, dict | list))


def blank_lines(name: str, number: int) -> InvalidData:
    """The refusal of a file that goes on without saying anything."""
    return InvalidData(f"{name}:{number}: more than {MOST_BLANK_LINES:,} blank lines one after the other.")


def too_long(name: str, number: int, kind: str) -> InvalidData:
    """The refusal of a line that is not one record."""
    return InvalidData(f"{name}:{number}: a line of more than {LONGEST_LINE >> 20} MB; {kind} has one record a line.")
