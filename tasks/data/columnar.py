"""Parquet in, rows out: only the columns that are needed, a batch at a time; a cell that is no value costs its row."""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from tasks.data.main_memory import MemoryWatch, free_main_memory, gigabytes
from tasks.data.opening import refuse_unpacked
from tasks.data.rows import Row, Rows, row_of
from tasks.errors import InvalidData
from tasks.output.escaping import shortened

BATCH = 64
"""Rows unpacked at once; fewer where a cell may be large. A larger batch is no faster."""
LEAST_PER_ROW = 2000
"""Bytes that a row takes in memory however little it says: its dictionary, its source, its record with messages."""
LEAST_STORED = 100
"""Bytes that a row counts for in a file however little it says."""


def parquet(stream: BinaryIO, name: str, columns: Collection[str] = ()) -> Rows:
    """The rows of a Parquet file, with `columns` of it, or with all where none is named.

    Raises InvalidData for a file that is torn, holds a column twice, or unpacks to more than the memory holds.
    """
    with _opened(stream, name) as file:
        names = list(file.schema_arrow.names)
        if repeated := [column for column, count in Counter(names).items() if count > 1]:
            raise InvalidData(f"{name}: the column {shortened(repeated[0])} is there twice; rename one or take it out.")
        wanted = [column for column in names if column in columns]
        unread = tuple(column for column in names if column not in wanted) if columns else ()
        if columns and not wanted:
            # One row without cells: what the formats need is said where the format is chosen.
            return Rows(name, "Parquet", "UTF-8", [Row(f"{name}:#1", {})] * min(file.metadata.num_rows, 1), unread)
        batch = _batch_size(file.metadata, wanted or names, name)
        batches = file.iter_batches(batch_size=batch, columns=wanted or None, use_threads=False)
        return Rows(name, "Parquet", "UTF-8", table_rows(batches, name), unread)


def stored_size(stream: BinaryIO, name: str) -> int:
    """Bytes that a Parquet file takes in memory, at least. Raises InvalidData for a file that is torn."""
    with _opened(stream, name) as file:
        return _stored(file.metadata, file.schema_arrow.names)[0]


@contextmanager
def _opened(stream: BinaryIO, name: str) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield pq.ParquetFile(stream)
    except MemoryError:
        # Arrow's own is an ArrowException too.
        raise
    except (pa.ArrowException, OSError) as fault:
        raise InvalidData(f"{name}: the Parquet file is damaged or cut off ({fault}); fetch it again.") from fault


def table_rows(batches: Iterable[Any], name: str) -> list[Row]:
    """The rows of Arrow batches or tables."""
    watch, rows = MemoryWatch(), list[Row]()
    for batch in batches:
        watch(batch.nbytes)
        rows += _rows(batch, name, len(rows) + 1)
    return rows


def _batch_size(metadata: Any, wanted: Collection[str], name: str) -> int:
    """Rows to unpack at once, by what the file says of itself: few bytes may stand for many rows, or for long ones.

    Raises InvalidData where they stand for more than text packs to, or than the memory that is free.
    """
    unpacked, packed, longest = _stored(metadata, wanted)
    refuse_unpacked(unpacked, packed, name)
    needed, free = max(unpacked, LEAST_PER_ROW * metadata.num_rows), free_main_memory()
    if needed > free:
        raise InvalidData(
            f"{name}: {metadata.num_rows:,} rows that take {gigabytes(needed)} or more, and {gigabytes(free)} of "
            "memory are free; take fewer records, or a machine with more memory."
        )
    # A cell that is stored once and repeated may be as long as its column in one group of rows.
    return max(1, min(BATCH, free // (4 * longest + 1)))


def _stored(metadata: Any, wanted: Collection[str]) -> tuple[int, int, int]:
    """Bytes of the wanted columns: unpacked, as they are stored, and of the longest column in one group of rows."""
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(metadata.num_columns)]
    inside = tuple(f"{column}." for column in wanted)
    chunks = [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(inside)]
    sizes = [chunk.total_uncompressed_size for chunk in chunks]
    unpacked = max(sum(sizes), LEAST_STORED * metadata.num_rows)
    return unpacked, sum(chunk.total_compressed_size for chunk in chunks), max(sizes, default=0)


def _rows(batch: Any, name: str, first: int) -> Iterator[Row]:
    try:
        values = batch.to_pylist()
    except (ValueError, OverflowError, LookupError, TypeError, RecursionError):
        yield from (_row(batch, index, f"{name}:#{first + index}") for index in range(batch.num_rows))
        return
    for number, value in enumerate(values, start=first):
        yield row_of(f"{name}:#{number}", value)


def _row(batch: Any, index: int, source: str) -> Row:
    """One row cell by cell, faulty where one is no value: text that is not UTF-8, a date that no calendar has."""
    values = {}
    for column in batch.schema.names:
        try:
            values[column] = batch.column(column)[index].as_py()
        except (ValueError, OverflowError, LookupError, TypeError, RecursionError) as fault:
            return Row(source, values, f"{column}: a cell that cannot be read ({type(fault).__name__})", "schema")
    return row_of(source, values)
