"""CSV and TSV in, rows out: as programs and as Excel write them, each row with the line it begins on."""

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO, Literal

from tasks.data.encoding import Encoding
from tasks.data.main_memory import MemoryWatch
from tasks.data.rows import LONGEST_LINE, MOST_BLANK_LINES, Row, blank_lines, too_long
from tasks.errors import InvalidData
from tasks.output.escaping import LISTED, listed, shortened

MOST_COLUMNS = 10_000
MOST_CELLS = 1_000_000
"""Of one line, counted by its delimiters."""
_SEP_LINE = re.compile(r'"?sep=(.)"?[,;\t]*', re.IGNORECASE)
_QUOTED = re.compile(r'"[^"]*"')


def delimited(stream: BinaryIO, encoding: Encoding, name: str, tab: bool) -> list[Row]:
    """The rows of a table whose first line names the columns.

    The delimiter is what Excel's `sep=` line says, or the most frequent of comma, semicolon and tab in the header,
    outside quotes. Raises InvalidData for a table without rows or columns, with a column twice, or with open quotes.
    """
    start = stream.tell()
    try:
        return _table(stream, encoding, name, tab, "say")
    except _SpacedQuotes:
        stream.seek(start)
    try:
        return _table(stream, encoding, name, tab, "skip")
    except InvalidData:
        stream.seek(start)
    return _table(stream, encoding, name, tab, "keep")


Spaces = Literal["say", "skip", "keep"]
"""What is done with a space before a quote: some programs write one after each comma, elsewhere it is text."""


class _SpacedQuotes(Exception):
    """A cell begins with a space and a quote."""


def _table(stream: BinaryIO, encoding: Encoding, name: str, tab: bool, spaces: Spaces) -> list[Row]:
    text = io.TextIOWrapper(stream, encoding.codec, errors=encoding.errors, newline="")
    try:
        return _rows(_lines(text, name), name, tab, spaces)
    finally:
        text.detach()


def _lines(text: io.TextIOWrapper, name: str) -> Iterator[str]:
    """Physical lines without the byte order marks that files put together have inside."""
    blank = 0
    for number in itertools.count(1):
        line = text.readline(LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > LONGEST_LINE:
            raise too_long(name, number, "CSV")
        blank = 0 if line.strip() else blank + 1
        if blank > MOST_BLANK_LINES:
            raise blank_lines(name, number)
        yield line.lstrip("\ufeff")


def _rows(lines: Iterator[str], name: str, tab: bool, spaces: Spaces) -> list[Row]:
    line, first, delimiter = _first_line(lines, tab, name)
    if spaces == "say" and re.search(f'{re.escape(delimiter)} +"', first):
        raise _SpacedQuotes
    csv.field_size_limit(LONGEST_LINE)
    bounded = _few_cells(itertools.chain([first], lines), delimiter, name, line)
    reader = csv.reader(bounded, delimiter=delimiter, strict=True, skipinitialspace=spaces == "skip")
    offset, watch, rows = line, MemoryWatch(), list[Row]()
    try:
        header = _header(next(reader, []), f"{name}:{line}")
        line = reader.line_num + offset
        for cells in reader:
            watch(sum(map(len, cells)))
            if spaces == "say" and any(cell[:1] == " " and cell.lstrip(" ")[:1] == '"' for cell in cells):
                raise _SpacedQuotes
            if any(cells):
                rows.append(_row(header, cells, name, line))
            line = reader.line_num + offset
    except csv.Error as fault:
        raise InvalidData(f"{name}:{line}: not CSV from here on: {fault}; check the quotes of this row.") from fault
    if not rows:
        raise InvalidData(f"{name}: has no rows; the first line was read as a header of {len(header)} columns.")
    return rows


def _first_line(lines: Iterator[str], tab: bool, name: str) -> tuple[int, str, str]:
    """The number and text of the line that names the columns, and the delimiter."""
    numbered = enumerate(lines, start=1)
    line, first = next(((number, text) for number, text in numbered if text.strip()), (1, ""))
    delimiter = "\t" if tab else ""
    if sep := _SEP_LINE.fullmatch(first.strip("\r\n")):
        delimiter = sep[1]
        line, first = next(numbered, (line, ""))
    outside = _QUOTED.sub("", first)
    delimiter = delimiter or max(",;\t", key=outside.count)
    if (count := outside.count(delimiter) + 1) > MOST_COLUMNS:
        names = listed(first.split(delimiter, LISTED)[:LISTED])
        raise InvalidData(
            f"{name}:{line}: a header of {count:,} columns, at most {MOST_COLUMNS:,}: "
            f"{names} and {count - LISTED:,} more."
        )
    return line, first, delimiter


def _few_cells(lines: Iterator[str], delimiter: str, name: str, first: int) -> Iterator[str]:
    for number, line in enumerate(lines, start=first):
        if line.count(delimiter) > MOST_CELLS:
            raise InvalidData(f"{name}:{number}: a line of more than {MOST_CELLS:,} cells; is the delimiter right?")
        yield line


def _header(cells: list[str], where: str) -> list[str]:
    """The names of the columns. Empty ones at the end, as in Excel's, are let go; one inside is named by its place."""
    names = [cell.strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    names = [name or f"column {number}" for number, name in enumerate(names, start=1)]
    if len(names) < 2:
        raise InvalidData(f"{where}: a header of one column; names are divided by comma, semicolon or tab.")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise InvalidData(f"{where}: the column {shortened(repeated[0])} is there twice; rename one or take it out.")
    return names


def _row(header: list[str], cells: list[str], name: str, line: int) -> Row:
    if not any(cells[len(header) :]):
        cells = cells[: len(header)]
    if len(cells) == len(header):
        return Row(f"{name}:{line}", dict(zip(header, cells, strict=True)))
    fault = f"{len(header)} columns in the header, {len(cells)} cells in line {line}"
    return Row(f"{name}:{line}", {"cells": cells}, fault, "schema")
