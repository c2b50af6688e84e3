"""Folders for a moment: whose they are, and who deletes them."""

import ast
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tasks.steps.scratch import scratch_folder

ROOT = Path(__file__).parents[1]
HOLDER = """
import sys, time
from tasks.steps.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "model.safetensors").write_bytes(b"0" * 1000)
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path))
    return tmp_path


def holder() -> "tuple[subprocess.Popen[str], Path]":
    """A process that holds a scratch folder, and the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_process_left_is_deleted_by_the_next_one(home: Path) -> None:
    process, folder = holder()
    try:
        with scratch_folder():
            assert (folder / "model.safetensors").exists(), "it belongs to a process that lives"
    finally:
        process.kill()
        process.communicate()
    assert (folder / "model.safetensors").exists()
    with scratch_folder():
        assert not folder.exists()
    assert list((home / "scratch").iterdir()) == []


def test_the_lock_of_a_folder_that_is_gone_goes_too(home: Path) -> None:
    """As a kill leaves it between the two deletions at the end."""
    (home / "scratch").mkdir()
    (home / "scratch" / "7-abc.lock").touch()
    with scratch_folder():
        pass
    assert list((home / "scratch").iterdir()) == []


def test_libraries_take_it_for_the_temporary_folder_as_long_as_it_is_there(home: Path) -> None:
    usual = tempfile.gettempdir()
    with scratch_folder() as outer:
        with scratch_folder() as inner:
            assert tempfile.gettempdir() == str(inner)
        assert tempfile.gettempdir() == str(outer) != usual
    assert tempfile.gettempdir() == usual


def test_a_failure_inside_leaves_nothing_behind(home: Path) -> None:
    with pytest.raises(RuntimeError), scratch_folder() as folder:
        (folder / "half").mkdir()
        raise RuntimeError
    assert list((home / "scratch").iterdir()) == []


def test_nothing_else_in_the_product_makes_temporary_files() -> None:
    files = sorted(path for folder in ("flows", "tasks") for path in (ROOT / folder).rglob("*.py"))
    assert len(files) >= 100
    users = {
        path.relative_to(ROOT).as_posix()
        for path in files
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if (isinstance(node, ast.Import) and any(name.name == "tempfile" for name in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "tempfile")
    }
    assert users == {"tasks/steps/scratch.py"}
