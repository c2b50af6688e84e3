"""One source in, its rows out, each with its file and line: JSON, JSON lines, CSV, TSV, Parquet, gzip of these, hub."""

import itertools
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from tasks.data import encoding
from tasks.data.columnar import BATCH, parquet, stored_size, table_rows
from tasks.data.delimited import delimited
from tasks.data.main_memory import MemoryWatch, free_main_memory, gigabytes
from tasks.data.opening import PARQUET, first_byte, opened
from tasks.data.rows import LONGEST_LINE, MOST_BLANK_LINES, Row, Rows, blank_lines, row_of, too_long
from tasks.data.sources import HubDataset, Source, hub_revision, pinned, unreachable
from tasks.errors import InvalidData
from tasks.output.escaping import printable


def read(source: Source, columns: Collection[str] = ()) -> Rows:
    """Read every row of one source; of a table stored by columns only `columns`, or all where none is named.

    Raises InvalidData for a file that is empty, torn, too large, in no known kind or encoding, or without one good row.
    """
    rows = _read_hub(source, columns) if isinstance(source, HubDataset) else _read_file(source, columns)
    if not rows.rows:
        raise InvalidData(f"{rows.name}: holds no rows; fill it or take it out of the recipe.")
    if all(row.fault for row in rows.rows):
        first = rows.rows[0]
        raise InvalidData(f"{first.source}: {first.fault}; none of the {len(rows.rows):,} rows can be read.")
    return rows


def unpacked_size(path: Path, most: int) -> int:
    """Bytes that a file holds unpacked, at least; counting ends beyond `most`. Raises InvalidData as `read` does."""
    with opened(path, fingerprint=False) as source:
        stream = source.stream
        if stream.read(4) == PARQUET:
            stream.seek(0)
            return stored_size(stream, printable(path.name))
        size = stream.seek(0)
        while size <= most and (chunk := stream.read(1 << 20)):
            size += len(chunk)
        return size


def _read_hub(source: HubDataset, columns: Collection[str]) -> Rows:
    import datasets
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    revision = hub_revision(source)
    try:
        table = datasets.load_dataset(source.name, revision=revision, split=source.split)
        wanted = [name for name in table.column_names if name in columns] or table.column_names
        unread = tuple(name for name in table.column_names if name not in wanted)
        batches = table.select_columns(wanted).with_format("arrow").iter(batch_size=BATCH)
        return Rows(
            str(source), "hub dataset", "UTF-8", table_rows(batches, str(source)), unread, pinned(source, revision)
        )
    except (OSError, HTTPError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as fault:
        raise InvalidData(unreachable(source, fault)) from fault


def _read_file(path: Path, columns: Collection[str]) -> Rows:
    with opened(path) as source:
        return _read_stream(source.stream, path, columns)._replace(fingerprint=source.fingerprint)


def _read_stream(stream: BinaryIO, path: Path, columns: Collection[str]) -> Rows:
    name = printable(path.name)
    if stream.read(4) == PARQUET:
        stream.seek(0)
        return parquet(stream, name, columns)
    stream.seek(0)
    known = encoding.detect(stream, name)
    stream.seek(0)
    plain = path.name.lower().removesuffix(".gz")
    first = _first_line(stream, known, name)
    stream.seek(0)
    if not plain.endswith((".csv", ".tsv")):
        return _json(stream, known, name, first)
    if _is_json(first) or first in ("[", "{"):
        kind = "JSON" if first in ("[", "{") else "JSON lines"
        raise InvalidData(f"{name}: this is {kind}, not CSV; give it a name that ends in .jsonl or .json.")
    tab = plain.endswith(".tsv")
    return Rows(name, "TSV" if tab else "CSV", known.label, delimited(stream, known, name, tab))


def _json(stream: BinaryIO, known: encoding.Encoding, name: str, first: str) -> Rows:
    """An array, one object, or lines: the first characters decide, whatever the file is called."""
    suffix = Path(name.lower().removesuffix(".gz")).suffix
    if first[:1] not in ("[", "{") and suffix not in (".json", ".jsonl", ".ndjson"):
        raise InvalidData(
            f"{name}: neither JSON, JSON lines, CSV, TSV nor Parquet; it begins with {first_byte(first)}."
        )
    spread = first[:1] == "{" and suffix not in (".jsonl", ".ndjson") and not _is_json(first)
    if first[:1] == "[" or spread:
        return Rows(name, "JSON", known.label, _elements(_whole(stream, known, name), name))
    rows = list(_lines(stream, known, name))
    # One line with one object that holds the list: {"data": [...]}.
    listed = _only_list(rows[0].values) if len(rows) == 1 and not rows[0].fault else None
    if listed is not None:
        return Rows(name, "JSON", known.label, _elements(listed, name))
    return Rows(name, "JSON lines", known.label, rows)


def _whole(stream: BinaryIO, known: encoding.Encoding, name: str) -> list[Any]:
    """The elements of a file that is one JSON value: an array, an object with one list, or one object."""
    content = stream.read()
    # The text stands beside the bytes, and an empty list or object alone takes 56 bytes.
    needed, free = 2 * len(content) + 56 * (content.count(b"[") + content.count(b"{")), free_main_memory()
    if needed > free:
        raise InvalidData(
            f"{name}: one JSON value that takes {gigabytes(needed)} or more to read, and {gigabytes(free)} of memory "
            "are free; write one record a line (JSON lines), or take fewer records."
        )
    try:
        value = json.loads(content.decode(known.codec, known.errors).lstrip("\ufeff"))
    except json.JSONDecodeError as fault:
        raise InvalidData(f"{name}:{fault.lineno}: not JSON: {fault.msg} (column {fault.colno}).") from fault
    except (ValueError, RecursionError) as fault:
        raise InvalidData(f"{name}: not usable JSON: {fault}.") from fault
    if isinstance(value, list):
        return value
    listed = _only_list(value)
    return [value] if listed is None else listed


def _first_line(stream: BinaryIO, known: encoding.Encoding, name: str) -> str:
    """The first line with something on it, without byte order marks; at most LONGEST_LINE bytes."""
    for _, line in _physical(stream, name, LONGEST_LINE):
        if text := line.decode(known.codec, "replace").lstrip("\ufeff").strip():
            return text
    return ""


def _physical(stream: BinaryIO, name: str, longest: int) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, each with its number, cut at `longest` bytes."""
    blank = 0
    for number in itertools.count(1):
        line = stream.readline(longest)
        if not line:
            return
        if line.strip():
            blank = 0
            yield number, line
            continue
        blank += 1
        if blank > MOST_BLANK_LINES:
            raise blank_lines(name, number)


def _is_json(line: str) -> bool:
    if line[:1] not in ("[", "{"):
        return False
    try:
        json.loads(line)
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
    watch, rows = MemoryWatch(), list[Row]()
    for number, value in enumerate(values, start=1):
        watch(0)
        rows.append(row_of(f"{name}:#{number}", value))
    return rows


def _lines(stream: BinaryIO, known: encoding.Encoding, name: str) -> Iterator[Row]:
    watch = MemoryWatch()
    for number, line in _physical(stream, name, LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE:
            raise too_long(name, number, "a file of JSON lines")
        watch(len(line))
        text = line.decode(known.codec, known.errors).lstrip("\ufeff").strip()
        source = f"{name}:{number}"
        try:
            yield row_of(source, json.loads(text))
        except json.JSONDecodeError as fault:
            yield Row(source, {"text": text[:2000]}, f"not JSON: {fault.msg} (column {fault.colno})")
        except (ValueError, RecursionError) as fault:
            yield Row(source, {"text": text[:2000]}, f"not usable JSON: {fault}")
