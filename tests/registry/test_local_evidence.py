"""Finished steps of this machine speak for a version; they are the first to be asked."""

import os

from tasks.artifacts import StepRecord
from tasks.promotion.evidence import _finished
from tasks.steps.state import State
from tasks.steps.store import StepStore


def test_the_evaluations_of_a_model_here_are_found_newest_first_and_those_that_were_changed_are_not(tmp_path):
    state = State(tmp_path)

    def made(name, mark, at):
        def build(folder):
            (folder / "answers.txt").write_text(mark, "utf-8")
            return StepRecord(digest=mark)

        step = StepStore(state.steps).make("evaluate", {"name": name, "mark": mark}, StepRecord, build)
        os.utime(step.path("manifest.json"), (at, at))
        return step

    old, new, _ = made("desk", "old", 1000), made("desk", "new", 2000), made("shop", "other", 3000)
    assert [step.digest for step in _finished("evaluate", StepRecord, state, "desk")] == ["new", "old"]
    assert [step.digest for step in _finished("evaluate", StepRecord, state)] == ["other", "new", "old"]
    new.path("answers.txt").write_text("NEW", "utf-8")
    found = list(_finished("evaluate", StepRecord, state, "desk"))
    assert [(step.digest, step.folder) for step in found] == [("old", old.folder)]
