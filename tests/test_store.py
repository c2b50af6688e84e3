import errno
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.artifacts import StepRecord
from tasks.errors import StateUnusable, WorkRefused
from tasks.files import known_digests
from tasks.files.durable import write_text
from tasks.steps.store import StepStore, digest, file_digest, writable


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


def rewrite(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), "utf-8")


def older_format(content: dict) -> None:
    """As manifests were written that had sizes alone."""
    content["files"] = {name: known["size"] for name, known in content["files"].items()}
    del content["digest"]


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "torn manifest": (lambda folder: (folder / "manifest.json").write_text('{"record": {', "utf-8"), "manifest.json"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
    "changed record": (
        lambda folder: rewrite(folder / "manifest.json", lambda content: content["record"].update(digest="other")),
        "manifest.json does not hold its own digest",
    ),
    "older format": (lambda folder: rewrite(folder / "manifest.json", older_format), "format of another version"),
    "missing file": (lambda folder: (folder / "answer.txt").unlink(), "answer.txt is gone"),
    "cut file": (lambda folder: (folder / "answer.txt").write_text("", "utf-8"), "answer.txt does not hold"),
    "flipped bit": (lambda folder: (folder / "answer.txt").write_text("43", "utf-8"), "answer.txt does not hold"),
    "changed inputs": (
        lambda folder: rewrite(folder / "inputs.json", lambda each: each.update(data="b")),
        "inputs.json",
    ),
    "stray file": (lambda folder: (folder / "other.safetensors").write_bytes(b"x"), "other.safetensors is not part"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_step_is_said_and_made_anew(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    store, (spoil, said) = StepStore(tmp_path), DAMAGES[damage]
    made = store.make("step", {"data": "a"}, StepRecord, record)
    spoil(made.folder)
    with pytest.raises(StateUnusable, match=said):
        store.check(made)
    again = store.make("step", {"data": "a"}, StepRecord, record)
    assert not again.reused and again.path("answer.txt").read_text() == "42"
    (warning,) = caplog.messages
    assert said in warning and str(made.folder) in warning
    assert store.make("step", {"data": "a"}, StepRecord, record).reused


def test_a_step_under_the_name_of_another_is_not_that_step(tmp_path: Path) -> None:
    store = StepStore(tmp_path)
    made, other = (store.make("step", {"data": data}, StepRecord, record) for data in ("a", "b"))
    shutil.rmtree(other.folder)
    shutil.copytree(made.folder, other.folder)
    assert not store.make("step", {"data": "b"}, StepRecord, record).reused


def test_bytes_that_were_put_back_with_their_old_time_are_noticed(tmp_path: Path) -> None:
    store = StepStore(tmp_path)
    path = store.make("step", {"data": "a"}, StepRecord, record).path("answer.txt")
    status = path.stat()
    path.write_text("43", "utf-8")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert not store.make("step", {"data": "a"}, StepRecord, record).reused


def test_a_file_that_rots_without_another_time_is_found_by_reading_in_full(tmp_path: Path) -> None:
    store = StepStore(tmp_path)
    made = store.make("step", {"data": "a"}, StepRecord, record)
    whole = file_digest(made.path("answer.txt"))
    made.path("answer.txt").write_text("43", "utf-8")
    stamp = known_digests.Stamp.of(made.path("answer.txt").stat())
    known_digests._known[made.path("answer.txt")] = stamp, whole
    store.check(made)
    time.sleep(0.1)
    with pytest.raises(StateUnusable, match=r"answer\.txt"):
        store.check(made, in_full=True)
    assert not store.make("step", {"data": "a"}, StepRecord, record).reused


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_a_step_made_of_files_that_changed_is_not_kept(tmp_path: Path, moment: str) -> None:
    store = StepStore(tmp_path)
    used = store.make("first", {"data": "a"}, StepRecord, record)

    def build(folder: Path) -> StepRecord:
        used.path("answer.txt").write_text("43", "utf-8")
        return record(folder)

    if moment == "before":
        used.path("answer.txt").write_text("43", "utf-8")
    with pytest.raises(StateUnusable, match=r"answer\.txt does not hold its digest.*run again"):
        store.make("second", {"data": used.digest}, StepRecord, build, resumable=True, uses=[used])
    assert not [path for path in (tmp_path / "second").iterdir() if (path / "answer.txt").exists()]

    used = store.make("first", {"data": "a"}, StepRecord, record)
    assert not used.reused
    assert not store.make("second", {"data": used.digest}, StepRecord, record, uses=[used]).reused


def test_a_step_in_use_that_was_made_again_with_another_result_is_refused(tmp_path: Path) -> None:
    store = StepStore(tmp_path)
    used = store.make("first", {"data": "a"}, StepRecord, record)
    with pytest.raises(StateUnusable, match="another result"):
        store.check(used.model_copy(update={"digest": "other"}))


def test_marks_of_what_was_told_are_no_part_of_a_step_and_outlive_it(tmp_path: Path) -> None:
    store = StepStore(tmp_path)
    made = store.make("step", {"data": "a"}, StepRecord, record)
    made.path(".told-run").touch()
    assert store.make("step", {"data": "a"}, StepRecord, record).reused
    made.path("answer.txt").write_text("43", "utf-8")
    assert store.make("step", {"data": "a"}, StepRecord, record).path(".told-run").exists()


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
    ("number", "words"),
    [
        (errno.ENOSPC, "disk is full"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permissions"),
        (errno.EIO, "look at the disk"),
    ],
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


@pytest.mark.parametrize("act", [lambda path: write_text(path, "text"), Path.read_bytes], ids=["written", "read"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, act: Callable[[Path], object]) -> None:
    (tmp_path / "summary.json").mkdir()
    with pytest.raises(StateUnusable, match=r"summary\.json: a folder is in the file's place"), writable(tmp_path):
        act(tmp_path / "summary.json")
