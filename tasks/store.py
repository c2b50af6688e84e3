"""Folders by content digest: inputs in, a finished folder out, made once.

A step is built in `<kind>/<key>.partial` under a lock that dies with its process, its manifest is written last, and
the folder is renamed into place. So a folder with its final name is whole; a partial one was interrupted, and its step
may go on in it or start it anew.
"""

import errno
import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from tasks.artifacts import StepRecord
from tasks.durable import write_text
from tasks.errors import StateUnusable
from tasks.locks import DAY, locked

Result = TypeVar("Result", bound=StepRecord)
MANIFEST = "manifest.json"


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON, 64 hex digits.

    >>> digest({"b": 1, "a": [2, "x"]}) == digest({"a": (2, "x"), "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=_plain)
    # A file name that is not UTF-8 comes with halves of surrogate pairs.
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        raise TypeError(f"{value}: a path is never part of a digest; give the digest of the bytes behind it")
    raise TypeError(f"{type(value).__name__} has no canonical JSON")


def file_digest(path: Path) -> str:
    """sha256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def files_digest(files: Mapping[str, Path]) -> str:
    """One digest for several files by name: names and bytes count, places do not."""
    return digest({name: file_digest(path) for name, path in files.items()})


def weights_digest(folder: Path) -> str:
    """sha256 over the sha256 of each safetensors file in name order; half a second a gigabyte, once a process."""
    files = sorted(folder.glob("*.safetensors"))
    return _digest_of(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@lru_cache(maxsize=64)
def _digest_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    total = hashlib.sha256()
    for path, _, _ in files:
        total.update(bytes.fromhex(file_digest(path)))
    return total.hexdigest()


class StepStore:
    """The step folders of one state folder.

    Raises StateUnusable where the state folder cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @staticmethod
    def key(kind: str, inputs: Mapping[str, Any]) -> str:
        """The digest that a step of these inputs is found by."""
        return digest({"kind": kind, **inputs})

    def find(self, kind: str, key: str, record: type[Result]) -> Result | None:
        """The finished step of these inputs, or None; a folder whose files are gone or torn counts as not there."""
        folder = self.root / kind / key[:32]
        try:
            manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
            if any((folder / name).stat().st_size != size for name, size in manifest["files"].items()):
                return None
            found = record.model_validate(manifest["record"])
        except (OSError, ValueError, KeyError, ValidationError):
            return None
        return found.model_copy(update={"folder": folder, "reused": True})

    def make(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        record: type[Result],
        build: Callable[[Path], Result],
        resumable: bool = False,
        still_true: Callable[[Result], bool] = lambda _: True,
    ) -> Result:
        """Find the step of these inputs, or build it: `build` fills the folder it is given and returns the record.

        With `resumable`, an interrupted build's folder is handed on as it was left; otherwise it starts empty. A found
        step that is not `still_true` (what it made outside its folder is gone) is built anew.
        """
        key = self.key(kind, inputs)
        if (found := self.find(kind, key, record)) and still_true(found):
            return found
        with writable(self.root), self._lock(kind, key):
            if (found := self.find(kind, key, record)) and still_true(found):
                return found
            folder = self.root / kind / key[:32]
            partial = folder.with_name(f"{folder.name}.partial")
            if partial.exists() and not resumable:
                shutil.rmtree(partial)
            partial.mkdir(parents=True, exist_ok=True)
            _write(partial / "inputs.json", dict(inputs))
            try:
                made = build(partial).model_copy(update={"key": key})
                self._finish(partial, folder, made)
            except BaseException:
                # Only what a resumable build has begun is of use to the next one.
                if not resumable or [path.name for path in partial.iterdir()] == ["inputs.json"]:
                    shutil.rmtree(partial, ignore_errors=True)
                raise
        return made.model_copy(update={"folder": folder, "reused": False})

    @contextmanager
    def _lock(self, kind: str, key: str) -> Iterator[None]:
        """One builder a step; the kernel frees the lock when its process dies, however it dies."""
        with locked(self.root / kind / f"{key[:32]}.lock", DAY, "building this step"):
            yield

    def _finish(self, partial: Path, folder: Path, made: StepRecord) -> None:
        files = {
            str(path.relative_to(partial)): path.stat().st_size for path in sorted(partial.rglob("*")) if path.is_file()
        }
        content = {"record": made.model_dump(mode="json", exclude={"folder", "reused"}), "files": files}
        _write(partial / MANIFEST, content)
        # Renamed into place last: a folder under its final name is whole, and what stood there was torn.
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1, default=_plain))


@contextmanager
def writable(root: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises into a message that says where and what to do."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as fault:
        problem = {
            errno.ENOSPC: "the disk is full; free space",
            errno.EDQUOT: "the disk quota is used up; free space",
            errno.EROFS: "the file system is read-only; mount it for writing",
            errno.EACCES: "it may not be written; change its permissions",
            errno.ENOTDIR: "part of this path is a file; move it away",
            errno.EEXIST: "a file is in the folder's place; move it away",
        }.get(fault.errno or 0)
        if problem is None:
            raise
        raise StateUnusable(
            f"{fault.filename or root}: {problem}, or point TUNELINE_HOME elsewhere. "
            "Nothing half-made is kept as finished."
        ) from fault
