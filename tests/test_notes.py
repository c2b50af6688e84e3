"""What one process has read of a step's files, handed on to the next: used while it is right, and never needed."""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.artifacts import StepRecord
from tasks.files import known_digests
from tasks.files.known_digests import _own_digest
from tasks.steps.store import StepStore, file_digest, read_step


def record(folder: Path) -> StepRecord:
    (folder / "answer.txt").write_text("42", "utf-8")
    return StepRecord(digest=file_digest(folder / "answer.txt"))


@pytest.fixture
def finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Look for a finished step as a process of its own would; gives the names of the files that it read in full."""
    store = StepStore(tmp_path)
    made = store.make("step", {"data": "a"}, StepRecord, record)
    read: list[str] = []
    real = known_digests.file_digest
    monkeypatch.setattr(known_digests, "file_digest", lambda path: read.append(path.name) or real(path))
    time.sleep(0.1)  # as old as any step that another process finds

    def look() -> list[str]:
        read.clear()
        monkeypatch.setattr(known_digests, "_known", {})
        assert read_step(made.folder, StepRecord).digest == made.digest
        return sorted(read)

    look()
    return look


def test_files_that_stay_as_they_were_are_read_in_full_once(finished: Callable[[], list[str]]) -> None:
    assert finished() == []


def test_another_machine_reads_them_in_full_again(
    finished: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "node", lambda: "another")
    assert finished() == ["answer.txt", "inputs.json"]
    assert finished() == []


def test_a_file_with_another_time_is_read_again_and_no_other(finished: Callable[[], list[str]], tmp_path: Path) -> None:
    next(tmp_path.glob("step/*/answer.txt")).touch()
    time.sleep(0.1)
    assert finished() == ["answer.txt"]
    assert finished() == []


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"machine": 1}',
        '{"machine": "MACHINE", "files": {"a": 1}}',
        "\xff",
        "[" * 100_000,
        f'{{"machine": "MACHINE", "digest": "{_own_digest({"a": [[float("inf"), 0, 0, 0], "b"]})}", '
        '"files": {"a": [[Infinity, 0, 0, 0], "b"]}}',
    ],
)
def test_a_note_that_cannot_be_read_costs_a_reading_and_nothing_else(
    finished: Callable[[], list[str]], tmp_path: Path, content: str
) -> None:
    (note,) = tmp_path.glob("step/*.verified")
    note.write_bytes(content.replace("MACHINE", platform.node()).encode("latin-1"))
    assert finished() == ["answer.txt", "inputs.json"]
    assert finished() == []


def test_a_note_that_rots_does_not_speak_against_files_that_are_whole(
    finished: Callable[[], list[str]], tmp_path: Path
) -> None:
    (note,) = tmp_path.glob("step/*.verified")
    known = json.loads(note.read_text("utf-8"))["files"]["answer.txt"][1]
    note.write_text(note.read_text("utf-8").replace(known, known[::-1]), "utf-8")
    assert finished() == ["answer.txt", "inputs.json"]
    assert StepStore(tmp_path).make("step", {"data": "a"}, StepRecord, record).reused
