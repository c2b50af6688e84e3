"""The log of a command, also on a disk that has no room for it."""

import logging
from pathlib import Path

import pytest

from flows.cli.logs import logged
from tasks.errors import StateUnusable
from tasks.steps.state import State

log = logging.getLogger("tuneline")


def fill(disk: Path) -> None:
    """Take every byte that is free."""
    with (disk / "ballast").open("wb", buffering=0) as ballast:
        try:
            while True:
                ballast.write(bytes(4096))
        except OSError:
            pass


def full(state: State) -> None:
    with logged(state, "retrain"):
        fill(state.root)
        for number in range(300):
            log.info("line %d of a log that has no room", number)
        raise StateUnusable("the disk is full; free space")


def test_a_full_disk_is_what_the_command_says_and_lost_lines_are_said_once(small_disk: Path, capsys) -> None:
    with pytest.raises(StateUnusable, match="the disk is full"):
        full(State(small_disk))
    said = capsys.readouterr().err
    assert "Logging error" not in said and "Traceback" not in said
    assert said.count("lines are missing from here on: No space left on device") == 1
    assert "line 299" in said


def test_a_log_goes_on_where_there_is_room(tmp_path: Path, capsys) -> None:
    with logged(State(tmp_path), "retrain") as path:
        log.info("seven steps")
    assert "seven steps" in path.read_text("utf-8")
    assert "seven steps" in capsys.readouterr().err
