"""One source in, its rows out, each with its file and line: JSON, JSON lines, CSV, TSV, Parquet, gzip of these, hub."""

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from tasks.data import encoding
from tasks.data.sources import HubDataset, Source, hub_revision, unreachable
from tasks.errors import InvalidData

LONGEST_LINE = 64 << 20
"""Bytes; a longer line is not one record."""


class Row(NamedTuple):
    """One row as it came; `values` is not a dictionary where the file holds something else."""

    source: str
    values: Any
    fault: str = ""
    """Why the row could not be read at all; empty for a row that was."""


class Rows(NamedTuple):
    """The rows of one source and how they were encoded."""

    name: str
    kind: str
    encoding: str
    rows: list[Row]


def read(source: Source) -> Rows:
    """Read every row of one source.

    Raises InvalidData for a file that is empty, torn, in no known kind or encoding, or without one readable row.
    """
    rows = _read_hub(source) if isinstance(source, HubDataset) else _read_file(source)
    if not rows.rows:
        raise InvalidData(f"{rows.name}: holds no rows; fill it or take it out of the recipe.")
    if all(row.fault for row in rows.rows):
        first = rows.rows[0]
        raise InvalidData(f"{first.source}: {first.fault}; none of the {len(rows.rows)} lines is JSON.")
    return rows


def _read_hub(source: HubDataset) -> Rows:
    import datasets
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    revision = hub_revision(source)
    try:
        table = datasets.load_dataset(source.name, revision=revision, split=source.split)
    except (OSError, HTTPError, ValueError, RuntimeError) as fault:
        raise InvalidData(unreachable(source, fault)) from fault
    rows = [Row(f"{source}:#{number}", dict(row)) for number, row in enumerate(table, start=1)]
    return Rows(str(source), "hub dataset", "UTF-8", rows)


def _read_file(path: Path) -> Rows:
    if path.stat().st_size == 0:
        raise InvalidData(f"{path}: the file is empty; fill it or take it out of the recipe.")
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            if not zipped:
                return _read_stream(raw, path)
            with gzip.open(raw) as unzipped:
                return _read_stream(cast(BinaryIO, unzipped), path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as fault:
        raise InvalidData(f"{path}: the gzip file is damaged or cut off ({fault}); fetch it again.") from fault


def _read_stream(stream: BinaryIO, path: Path) -> Rows:
    head = stream.read(4)
    stream.seek(0)
    if head == b"PAR1":
        return Rows(path.name, "Parquet", "UTF-8", _parquet(stream, path))
    found = encoding.detect(stream, path.name)
    stream.seek(0)
    plain = path.name.lower().removesuffix(".gz")
    if plain.endswith((".csv", ".tsv")):
        tab = plain.endswith(".tsv")
        return Rows(path.name, "TSV" if tab else "CSV", found.label, _delimited(stream, found, path.name, tab))
    return _json(stream, found, path.name)


def _json(stream: BinaryIO, found: encoding.Encoding, name: str) -> Rows:
    """An array, one object, or lines: the first characters decide, whatever the file is called."""
    first = _first_line(stream)
    stream.seek(0)
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    if first[:1] not in (b"[", b"{") and suffix not in (".json", ".jsonl", ".ndjson"):
        raise InvalidData(f"{name}: neither JSON, JSON lines, CSV, TSV nor Parquet; it begins with {_excerpt(first)}.")
    spread = first[:1] == b"{" and suffix not in (".jsonl", ".ndjson") and not _is_json(first, found)
    if first[:1] == b"[" or spread:
        values = _whole(stream, found, name)
        return Rows(name, "JSON", found.label, _elements(values, name))
    rows = list(_lines(stream, found, name))
    # One line with one object that holds the list: {"data": [...]}.
    listed = _only_list(rows[0].values) if len(rows) == 1 and not rows[0].fault else None
    if listed is not None:
        return Rows(name, "JSON", found.label, _elements(listed, name))
    return Rows(name, "JSON lines", found.label, rows)


def _whole(stream: BinaryIO, found: encoding.Encoding, name: str) -> list[Any]:
    """The elements of a file that is one JSON value: an array, an object with one list, or one object."""
    try:
        value = json.loads(stream.read().decode(found.codec, found.errors))
    except json.JSONDecodeError as fault:
        raise InvalidData(f"{name}:{fault.lineno}: not JSON: {fault.msg} (column {fault.colno}).") from fault
    except (ValueError, RecursionError) as fault:
        raise InvalidData(f"{name}: not usable JSON: {fault}.") from fault
    if isinstance(value, list):
        return value
    listed = _only_list(value)
    return [value] if listed is None else listed


def _first_line(stream: BinaryIO) -> bytes:
    """The first line with something on it, without a byte order mark; at most LONGEST_LINE bytes."""
    for line in iter(lambda: stream.readline(LONGEST_LINE), b""):
        if stripped := line.removeprefix(b"\xef\xbb\xbf").strip():
            return stripped
    return b""


def _is_json(line: bytes, found: encoding.Encoding) -> bool:
    try:
        json.loads(line.decode(found.codec, found.errors))
    except (ValueError, RecursionError):
        return False
    return True


def _only_list(value: Any) -> list[Any] | None:
    """The list of rows that an object holds beside whatever else it says of itself; None for a row."""
    if not isinstance(value, dict) or {"messages", "conversations"} & value.keys():
        return None
    lists = [item for item in value.values() if isinstance(item, list)]
    return lists[0] if len(lists) == 1 else None


def _elements(values: list[Any], name: str) -> list[Row]:
    return [Row(f"{name}:#{number}", value) for number, value in enumerate(values, start=1)]


def _lines(stream: BinaryIO, found: encoding.Encoding, name: str) -> Iterator[Row]:
    for number in itertools.count(1):
        line = stream.readline(LONGEST_LINE + 1)
        if not line:
            return
        if len(line) > LONGEST_LINE:
            raise InvalidData(
                f"{name}:{number}: a line of more than {LONGEST_LINE >> 20} MB; JSON lines hold one record a line."
            )
        text = line.decode(found.codec if number == 1 else found.codec.removesuffix("-sig"), found.errors).strip()
        if not text:
            continue
        source = f"{name}:{number}"
        try:
            yield Row(source, json.loads(text))
        except json.JSONDecodeError as fault:
            yield Row(source, {"text": text[:2000]}, f"not JSON: {fault.msg} (column {fault.colno})")
        except (ValueError, RecursionError) as fault:
            yield Row(source, {"text": text[:2000]}, f"not usable JSON: {fault}")


def _delimited(stream: BinaryIO, found: encoding.Encoding, name: str, tab: bool) -> list[Row]:
    text = io.TextIOWrapper(stream, found.codec, errors=found.errors, newline="")
    header_line = text.readline()
    text.seek(0)
    delimiter = "\t" if tab else max(",;\t", key=header_line.count)
    csv.field_size_limit(LONGEST_LINE)
    lines = csv.reader(text, delimiter=delimiter, strict=True)
    rows: list[Row] = []
    line = 1
    try:
        header = [column.strip() for column in next(lines, [])]
        line = lines.line_num + 1
        for cells in lines:
            if cells:
                rows.append(_table_row(header, cells, f"{name}:{line}"))
            line = lines.line_num + 1
    except csv.Error as fault:
        raise InvalidData(f"{name}:{line}: not CSV from here on: {fault}; check the quotes of this row.") from fault
    finally:
        text.detach()
    if not rows:
        raise InvalidData(f"{name}: has no rows; the first line was read as header: {', '.join(header) or 'nothing'}.")
    return rows


def _table_row(header: list[str], cells: list[str], source: str) -> Row:
    if len(cells) == len(header):
        return Row(source, dict(zip(header, cells, strict=True)))
    return Row(source, cells)


def _parquet(stream: BinaryIO, path: Path) -> list[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(stream.read()))
    except (pa.ArrowInvalid, OSError) as fault:
        raise InvalidData(f"{path.name}: the Parquet file is damaged or cut off ({fault}); fetch it again.") from fault
    return _elements(table.to_pylist(), path.name)


def _excerpt(line: bytes) -> str:
    return repr(line[:40].decode("utf-8", "replace"))
