import threading
from pathlib import Path

import pytest
from pydantic import BaseModel

from tasks.files import durable


class Note(BaseModel, extra="forbid"):
    run_id: str
    count: int = 0


def test_what_is_written_is_read_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    durable.write_text(tmp_path / "note.json", Note(run_id="ä").model_dump_json())
    assert durable.read(tmp_path / "note.json", Note) == Note(run_id="ä")
    assert [path.name for path in tmp_path.iterdir()] == ["note.json"]


def test_a_write_that_fails_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "note.json"
    durable.write_text(path, "old")
    monkeypatch.setattr(durable.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        durable.write_text(path, "new")
    monkeypatch.undo()
    assert {entry.name: entry.read_text("utf-8") for entry in tmp_path.iterdir()} == {"note.json": "old"}


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    (tmp_path / ".note.json.new").write_text('{"run_', "utf-8")
    (tmp_path / ".note.json.lock").touch()
    durable.write_text(tmp_path / "note.json", "whole")
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == {"note.json": "whole"}


def test_two_writers_of_one_file_leave_the_content_of_one_of_them(tmp_path: Path) -> None:
    path = tmp_path / "note.json"

    def write(letter: str) -> None:
        for _ in range(20):
            durable.write_text(path, letter * 5000)

    writers = [threading.Thread(target=write, args=(letter,)) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text("utf-8") in ("a" * 5000, "b" * 5000)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Invalid JSON"),
        (b"null", "object"),
        (b'{"run_id": "x", "count": "many"}', "count"),
        (b'{"run_id": "x", "more": 1}', "more"),
        (b"\xff\xfe", "Invalid JSON"),
    ],
)
def test_a_record_that_cannot_be_read_is_named_with_the_reason(
    tmp_path: Path, content: bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "note.json"
    path.write_bytes(content)
    assert durable.read(path, Note) is None
    assert str(path) in caplog.text and reason in caplog.text


def test_a_record_that_is_not_there_is_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert durable.read(tmp_path / "note.json", Note) is None
    assert caplog.text == ""
