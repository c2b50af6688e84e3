import errno
import multiprocessing
import time
from pathlib import Path

import pytest

from tasks.artifacts import StepRecord
from tasks.errors import StateUnusable, WorkRefused
from tasks.store import StepStore, digest, file_digest, writable


def record(folder: Path) -> StepRecord:
    (folder / "answer.txt").write_text("42", "utf-8")
    return StepRecord(digest=file_digest(folder / "answer.txt"))


def test_the_same_inputs_are_made_once_and_found_after(tmp_path: Path) -> None:
    made = StepStore(tmp_path).make("step", {"data": "a"}, StepRecord, record)
    found = StepStore(tmp_path).make("step", {"data": "a"}, StepRecord, lambda folder: pytest.fail("made twice"))
    assert (made.reused, found.reused) == (False, True)
    assert found.path("answer.txt").read_text() == "42"
    assert (found.digest, found.key, found.folder) == (made.digest, made.key, made.folder)


def test_other_inputs_are_another_step(tmp_path: Path) -> None:
    store = StepStore(tmp_path)
    one = store.make("step", {"data": "a"}, StepRecord, record)
    other = store.make("step", {"data": "b"}, StepRecord, record)
    assert not other.reused and other.folder != one.folder


def test_a_path_is_never_part_of_a_key() -> None:
    with pytest.raises(TypeError, match="digest of the bytes"):
        digest({"data": Path("a.jsonl")})


def test_a_failed_build_leaves_no_finished_folder_and_is_built_anew(tmp_path: Path) -> None:
    store = StepStore(tmp_path)

    def fail(folder: Path) -> StepRecord:
        (folder / "half.txt").write_text("half", "utf-8")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.make("step", {"data": "a"}, StepRecord, fail)
    assert not [path for path in (tmp_path / "step").iterdir() if path.is_dir() and path.suffix != ".partial"]
    made = store.make("step", {"data": "a"}, StepRecord, record)
    assert not made.path("half.txt").exists()


def test_a_resumable_build_goes_on_in_the_folder_it_left(tmp_path: Path) -> None:
    store = StepStore(tmp_path)

    def fail(folder: Path) -> StepRecord:
        (folder / "checkpoint").write_text("3", "utf-8")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.make("step", {"data": "a"}, StepRecord, fail, resumable=True)
    made = store.make("step", {"data": "a"}, StepRecord, record, resumable=True)
    assert made.path("checkpoint").read_text() == "3"


@pytest.mark.parametrize("damage", ["torn manifest", "missing file", "cut file"])
def test_a_damaged_step_is_made_anew(tmp_path: Path, damage: str) -> None:
    store = StepStore(tmp_path)
    made = store.make("step", {"data": "a"}, StepRecord, record)
    if damage == "torn manifest":
        made.path("manifest.json").write_text('{"record": {', "utf-8")
    elif damage == "missing file":
        made.path("answer.txt").unlink()
    else:
        made.path("answer.txt").write_text("", "utf-8")
    again = store.make("step", {"data": "a"}, StepRecord, record)
    assert not again.reused and again.path("answer.txt").read_text() == "42"


def test_a_found_step_whose_outside_work_is_gone_is_made_anew(tmp_path: Path) -> None:
    store = StepStore(tmp_path)
    store.make("step", {"data": "a"}, StepRecord, record)
    assert not store.make("step", {"data": "a"}, StepRecord, record, still_true=lambda found: False).reused


def test_a_state_folder_may_be_moved(tmp_path: Path) -> None:
    StepStore(tmp_path / "here").make("step", {"data": "a"}, StepRecord, record)
    (tmp_path / "here").rename(tmp_path / "there")
    found = StepStore(tmp_path / "there").make("step", {"data": "a"}, StepRecord, record)
    assert found.reused and found.folder.is_relative_to(tmp_path / "there")


def slow_build(root: str, log: str) -> None:
    def build(folder: Path) -> StepRecord:
        with Path(log).open("a") as stream:
            stream.write("built\n")
        time.sleep(0.5)
        return record(folder)

    StepStore(Path(root)).make("step", {"data": "a"}, StepRecord, build)


def test_two_processes_build_a_step_once(tmp_path: Path) -> None:
    log = tmp_path / "log"
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=slow_build, args=(str(tmp_path / "s"), str(log))) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    assert log.read_text() == "built\n"


@pytest.mark.parametrize(
    ("number", "words"), [(errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only"), (errno.EACCES, "permissions")]
)
def test_a_full_or_read_only_disk_says_what_to_do(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(StateUnusable, match=words), writable(tmp_path):
        raise OSError(number, "refused", str(tmp_path / "file"))


@pytest.mark.parametrize("fault", [WorkRefused("no"), RuntimeError("broken"), KeyboardInterrupt()], ids=repr)
def test_a_step_that_ends_in_a_failure_takes_its_partial_folder_along(tmp_path: Path, fault: BaseException) -> None:
    def fail(folder: Path) -> StepRecord:
        (folder / "half.txt").write_text("half", "utf-8")
        raise fault

    with pytest.raises(type(fault)):
        StepStore(tmp_path).make("step", {"data": "a"}, StepRecord, fail)
    assert list((tmp_path / "step").iterdir()) == []


def test_a_resumable_step_that_was_refused_before_it_began_leaves_nothing(tmp_path: Path) -> None:
    def refuse(_: Path) -> StepRecord:
        raise WorkRefused("no")

    with pytest.raises(WorkRefused):
        StepStore(tmp_path).make("step", {"data": "a"}, StepRecord, refuse, resumable=True)
    assert list((tmp_path / "step").iterdir()) == []
