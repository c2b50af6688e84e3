"""Folders by content digest: inputs in, a finished folder out, made once.

A step is built in `<kind>/<key>.partial` under a lock that dies with its process, its manifest is written last, and
the folder is renamed into place. So a folder with its final name is whole; a partial one was interrupted, and its step
may go on in it or start it anew.

    inputs ──digest──▶ key ──▶ <kind>/<key>/manifest.json there and true? ──yes──▶ reused
                                        │ no
                                        ▼
                       <kind>/<key>.partial/  inputs.json, files, manifest.json  ──rename──▶ <kind>/<key>/

A manifest holds size and digest of every file, and a digest of itself. A step whose files hold something else counts
as not there. What this machine has read is kept in `<key>.verified`, so that files which stay are read once.
"""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from tasks.artifacts import StepRecord
from tasks.errors import StateUnusable
from tasks.files.digests import digest, files_digest, model_digest, plain, weights_digest
from tasks.files.durable import write_text
from tasks.files.known_digests import file_digest, known_digest, remembered
from tasks.files.locks import DAY, locked

__all__ = [
    "MANIFEST",
    "StepStore",
    "digest",
    "file_digest",
    "files_digest",
    "model_digest",
    "read_step",
    "recorded_digest",
    "weights_digest",
    "writable",
]

Result = TypeVar("Result", bound=StepRecord)
MANIFEST = "manifest.json"
log = logging.getLogger("tuneline")
_said: dict[Path, str] = {}
"""What was warned of last for a folder: a step is looked for more than once."""


class _NotWhole(Exception):
    """A finished step whose files are not those of its manifest; the text names the first such file."""


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
        """The finished step of these inputs, or None; a folder whose files are gone or changed counts as not there."""
        folder = self.root / kind / key[:32]
        try:
            found = read_step(folder, record) if folder.exists() else None
            if found and found.key != key:
                raise StateUnusable(f"{folder}: it holds the step {found.key[:32]}; its own is made again.")
            return found
        except StateUnusable as fault:
            if _said.get(folder) != str(fault):
                log.warning("%s", fault)
            _said[folder] = str(fault)
            return None

    def folders(self, kind: str) -> list[Path]:
        """The folders of finished steps of a kind, the newest first; `read_step` tells which of them are whole."""
        manifests = (self.root / kind).glob(f"*/{MANIFEST}")
        newest_first = sorted(manifests, key=lambda path: path.stat().st_mtime, reverse=True)
        return [path.parent for path in newest_first if path.parent.suffix != ".partial"]

    def check(self, step: StepRecord, in_full: bool = False) -> None:
        """Raise StateUnusable where a step in use is no longer what it was; with `in_full` every byte is read again."""
        try:
            if _whole(step.folder, in_full)["digest"] == step.digest:
                return
            problem = "it was made again with another result"
        except _NotWhole as fault:
            problem = str(fault)
        raise StateUnusable(f"{step.folder}: {problem}. It changed while it was used; run again: it is made again.")

    def make(
        self,
        kind: str,
        inputs: Mapping[str, Any],
        record: type[Result],
        build: Callable[[Path], Result],
        resumable: bool = False,
        still_true: Callable[[Result], bool] = lambda _: True,
        uses: Sequence[StepRecord] = (),
    ) -> Result:
        """Find the step of these inputs, or build it: `build` fills the folder it is given and returns the record.

        With `resumable`, an interrupted build's folder is handed on as it was left; otherwise it starts empty. A found
        step that is not `still_true` (what it made outside its folder is gone) is built anew. `uses` are the steps
        whose files the build reads: raises StateUnusable where they changed before it or while it ran.
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
                for step in uses:
                    self.check(step)
                made = build(partial).model_copy(update={"key": key})
                self._check_again(uses, partial)
                self._finish(partial, folder, made)
            except BaseException:
                # Only what a resumable build has begun is of use to the next one.
                if partial.exists() and (not resumable or [path.name for path in partial.iterdir()] == ["inputs.json"]):
                    shutil.rmtree(partial, ignore_errors=True)
                raise
        return made.model_copy(update={"folder": folder, "reused": False})

    def _check_again(self, uses: Sequence[StepRecord], partial: Path) -> None:
        """Look once more at what a step was made of; where it changed, nothing of the step may be gone on with."""
        try:
            for step in uses:
                self.check(step)
        except StateUnusable:
            shutil.rmtree(partial)
            raise

    @contextmanager
    def _lock(self, kind: str, key: str) -> Iterator[None]:
        """One builder a step; the kernel frees the lock when its process dies, however it dies."""
        with locked(self.root / kind / f"{key[:32]}.lock", DAY, "building this step"):
            yield

    def _finish(self, partial: Path, folder: Path, made: StepRecord) -> None:
        with remembered(_note(folder), partial):
            files = {
                name: {"size": path.stat().st_size, "sha256": _synced_digest(path)}
                for name, path in _files(partial).items()
            }
        content = {"record": made.model_dump(mode="json", exclude={"folder", "reused"}), "files": files}
        _write(partial / MANIFEST, {**content, "digest": digest(content)})
        # Renamed into place last: a folder under its final name is whole, and what stood there was not.
        if folder.exists():
            _keep_marks(folder, partial, made)
            shutil.rmtree(folder)
        partial.rename(folder)


def recorded_digest(step: StepRecord, name: str) -> str:
    """sha256 of a file of a finished step, as its manifest has it."""
    files = json.loads((step.folder / MANIFEST).read_text("utf-8"))["files"]
    return str(files[name]["sha256"])


def read_step(folder: Path, record: type[Result]) -> Result:
    """The record of a finished step; raises StateUnusable where a file is not what its manifest says."""
    try:
        return record.model_validate(_whole(folder)).model_copy(update={"folder": folder, "reused": True})
    except ValidationError:
        problem = f"{MANIFEST} has the format of another version"
    except _NotWhole as fault:
        problem = str(fault)
    raise StateUnusable(f"{folder}: {problem}; the step does not count, and is made again when a run needs it.")


def _files(folder: Path) -> dict[str, Path]:
    """A step's files by name, without the manifest and without hidden ones: marks, and what file managers leave."""
    paths = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    hidden = {name for name in paths if any(part.startswith(".") for part in name.parts)}
    return {name.as_posix(): path for name, path in paths.items() if name not in hidden and str(name) != MANIFEST}


def _keep_marks(folder: Path, again: Path, made: StepRecord) -> None:
    """What was told of a step holds for the same result made again: told twice, its points would stand there twice."""
    try:
        same = json.loads((folder / MANIFEST).read_text("utf-8"))["record"]["digest"] == made.digest
    except (OSError, ValueError, KeyError, TypeError):
        return
    if same:
        for mark in folder.glob(".*"):
            shutil.copy2(mark, again / mark.name)


def _note(folder: Path) -> Path:
    """Where this machine keeps what it has read of a step's files."""
    return folder.with_name(f"{folder.name}.verified")


def _whole(folder: Path, in_full: bool = False) -> dict[str, Any]:
    """The record of a step whose files are all those of its manifest; raises _NotWhole."""
    try:
        content = json.loads((folder / MANIFEST).read_text("utf-8"))
        record, recorded, own = content["record"], content["files"], content["digest"]
    except KeyError as fault:
        raise _NotWhole(f"{MANIFEST} has the format of another version (no {fault})") from fault
    except (OSError, ValueError, TypeError) as fault:
        raise _NotWhole(f"{MANIFEST} cannot be read ({type(fault).__name__})") from fault
    if own != digest({"record": record, "files": recorded}):
        raise _NotWhole(f"{MANIFEST} does not hold its own digest")
    files = _files(folder)
    if unequal := sorted(files.keys() ^ recorded.keys()):
        raise _NotWhole(f"{unequal[0]} {'is gone' if unequal[0] in recorded else 'is not part of this step'}")
    with remembered(_note(folder), folder):
        for name, known in recorded.items():
            try:
                same = (
                    files[name].stat().st_size == known["size"]
                    and known_digest(files[name], again=in_full) == known["sha256"]
                )
            except OSError as fault:
                raise _NotWhole(f"{name} cannot be read ({fault.strerror})") from fault
            if not same:
                raise _NotWhole(f"{name} does not hold its digest")
    return dict(record)


def _synced_digest(path: Path) -> str:
    """The digest of a file that is on the disk: what a crash of the machine could still take back is not promised."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return known_digest(path)


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, ensure_ascii=False, indent=1, default=plain))


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
            errno.EISDIR: "a folder is in the file's place; move it away",
            errno.EIO: "the disk does not read or write it; look at the disk",
        }.get(fault.errno or 0)
        if problem is None:
            raise
        raise StateUnusable(
            f"{fault.filename2 or fault.filename or root}: {problem}, or point TUNELINE_HOME elsewhere. "
            "Nothing half-made is kept as finished."
        ) from fault
