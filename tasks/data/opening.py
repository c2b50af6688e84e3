"""A path in, its bytes as a stream out: unpacked within a bound, and named where they are no records at all."""

import gzip
import hashlib
import io
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from tasks.data.main_memory import free_main_memory, gigabytes
from tasks.errors import InvalidData
from tasks.files.known_digests import Stamp

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
ALWAYS_UNPACKED, LARGEST_RATIO = 256 << 20, 200
"""Bytes that a packed file may always unpack to, and how many times its own size beyond; text packs 3 to 20 times."""
HEAD = 512


class Kind(NamedTuple):
    """A kind of file that holds no records that can be read here: how it begins, its name, and what to do."""

    start: re.Pattern[bytes]
    name: str
    advice: str


def _kind(start: bytes, name: str, advice: str) -> Kind:
    return Kind(re.compile(start, re.DOTALL | re.IGNORECASE), name, advice)


_UNPACK, _TABLE, _TEXT = "unpack it first", "save its table as CSV", "save the file as UTF-8"
_OTHER = "give JSON, JSON lines, CSV, TSV or Parquet"
KINDS = (
    _kind(rb"\x1f\x8b", "gzip inside gzip", "unpack it once"),
    _kind(rb"\x28\xb5\x2f\xfd", "zstd", _UNPACK),
    _kind(rb"BZh[1-9](\x31\x41\x59\x26|\x17\x72\x45\x38)", "bzip2", _UNPACK),
    _kind(rb"\xfd7zXZ\x00", "xz", _UNPACK),
    _kind(rb"7z\xbc\xaf\x27\x1c", "7-Zip", _UNPACK),
    _kind(rb"Rar!\x1a\x07", "RAR", _UNPACK),
    _kind(rb"\x04\x22\x4d\x18", "LZ4", _UNPACK),
    _kind(rb".{257}ustar", "a tar archive", _UNPACK),
    _kind(rb"PK(\x03\x04|\x05\x06)", "a zip archive or an Excel workbook", f"{_UNPACK}, or {_TABLE}"),
    _kind(rb"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file", _TABLE),
    _kind(rb"(ARROW1\x00\x00|FEA1)", "an Arrow file", "save it as Parquet"),
    _kind(rb"SQLite format 3\x00", "an SQLite database", _TABLE),
    _kind(rb"\x89HDF\r\n", "an HDF5 file", _TABLE),
    _kind(rb"\x93NUMPY", "a NumPy array", _OTHER),
    _kind(rb"\x80[\x02-\x05][\x00-\x1f}\]cX(\x8c\x95]", "a Python pickle", _OTHER),
    _kind(rb"\x7fELF", "a program (ELF)", _OTHER),
    _kind(rb"%PDF-", "a PDF", _OTHER),
    _kind(rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP", "a picture", _OTHER),
    _kind(rb"-----BEGIN ", "a key or a certificate", _OTHER),
    _kind(rb"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with `git lfs pull`"),
    _kind(rb"(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml)", "an HTML or XML page", f"{_OTHER}; a download may have failed"),
    _kind(rb"\xff\xfe\x00\x00|\x00\x00\xfe\xff", "UTF-32", _TEXT),
    _kind(rb"\xff\xfe|\xfe\xff", "UTF-16", _TEXT),
    _kind(rb"([^\x00]\x00){4}|(\x00[^\x00]){4}", "UTF-16 without a byte order mark", _TEXT),
)


class OpenSource(NamedTuple):
    """An open source file: its bytes, unpacked where it is gzip, and sha256 of them as they lie on the disk."""

    stream: BinaryIO
    fingerprint: str


@contextmanager
def opened(path: Path, fingerprint: bool = True) -> Iterator[OpenSource]:
    """Open a source file; its fingerprint costs one more reading, and is empty where it is not wanted.

    Raises InvalidData for a file that cannot be read, is empty, torn, too large for the memory, of a kind that holds no
    records, or, with a fingerprint, written to while it was read; what it holds is never part of the message.
    """
    try:
        with path.open("rb") as raw:
            size = path.stat().st_size
            if size == 0:
                raise InvalidData(f"{path}: the file is empty; fill it or take it out of the recipe.")
            stamp = Stamp.of(os.fstat(raw.fileno()))
            content = hashlib.file_digest(raw, "sha256").hexdigest() if fingerprint else ""
            raw.seek(0)
            start = raw.read(4)
            raw.seek(0)
            stream = _unpacked(raw, path, size) if start[:2] == GZIP else raw
            # Of Parquet only some columns are read: what they take is asked there.
            if stream is raw and start != PARQUET:
                _refuse_too_large(size, free_main_memory(), path)
            _refuse_other_kinds(stream, path)
            yield OpenSource(stream, content)
            if fingerprint and Stamp.of(os.fstat(raw.fileno())) != stamp:
                raise InvalidData(f"{path}: the file changed while it was read; run again when nobody writes to it.")
    except (gzip.BadGzipFile, EOFError, zlib.error) as fault:
        raise InvalidData(f"{path}: the gzip file is damaged or cut off ({fault}); fetch it again.") from fault
    except OSError as fault:
        raise InvalidData(f"{path}: cannot be read ({fault.strerror or type(fault).__name__}).") from fault


def first_byte(text: str) -> str:
    """What kind of character a text begins with, without saying which.

    >>> first_byte("hello"), first_byte("42"), first_byte("")
    ('a letter', 'a digit', 'nothing')
    """
    if not text:
        return "nothing"
    return "a letter" if text[0].isalpha() else "a digit" if text[0].isdigit() else "a sign"


def refuse_unpacked(unpacked: int, packed: int, name: str) -> None:
    """Raise InvalidData where a file stands for more bytes than text packs to."""
    if unpacked > max(ALWAYS_UNPACKED, LARGEST_RATIO * packed):
        raise InvalidData(
            f"{name}: unpacks to {gigabytes(unpacked)} or more, {unpacked // max(packed, 1):,} times its size, which "
            "no text does; look at what is in it."
        )


def _unpacked(raw: BinaryIO, path: Path, size: int) -> BinaryIO:
    free = free_main_memory()

    def check(unpacked: int) -> None:
        refuse_unpacked(unpacked, size, str(path))
        _refuse_too_large(unpacked, free, path)

    return cast(BinaryIO, io.BufferedReader(_Bounded(raw, check), 1 << 20))


def _refuse_too_large(size: int, free: int, path: Path) -> None:
    if size > free:
        raise InvalidData(
            f"{path}: has {gigabytes(size)} or more, and {gigabytes(free)} of memory are free. All records of a run "
            "are held in memory, with short prompts in up to 45 times their bytes: take fewer records, or a machine "
            "with more memory."
        )


class _Bounded(io.RawIOBase):
    """What a gzip file unpacks to; `check` gets the bytes so far and raises beyond its bound."""

    def __init__(self, raw: BinaryIO, check: Callable[[int], None]) -> None:
        self._file = gzip.GzipFile(fileobj=raw)
        self._check = check

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._check(self._file.tell())
        return count

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()


def _refuse_other_kinds(stream: BinaryIO, path: Path) -> None:
    head = stream.read(HEAD)
    stream.seek(0)
    for kind in KINDS:
        if kind.start.match(head):
            where = "byte 0: " if kind.name == "UTF-16" else ""
            raise InvalidData(f"{path.name}: {where}this is {kind.name}; {kind.advice}.")
