"""Whole commands killed, doubled, and robbed of what they wrote: the state they leave, and the next run."""

import json
import os
import time
from pathlib import Path

import pytest

from tasks.registry import lookup
from tasks.registry.client import connect

pytestmark = pytest.mark.slow


def killed_at(process, moment) -> None:
    """Kill a command, with nothing to say about it, at the first sight of a moment."""
    until = time.monotonic() + 300
    try:
        while not moment():
            assert process.poll() is None, f"ended before: {process.stdout.read()}"
            assert time.monotonic() < until
            time.sleep(0.001)
    finally:
        process.kill()
        process.communicate()


def status(shop) -> str:
    (run,) = shop.runs()
    return lookup.run_status(shop.uri, run)


def curve(shop, run: str) -> list[int]:
    return [point.step for point in connect(shop.uri).get_metric_history(run, "train/loss")]


def test_kills_in_register_and_after_the_last_step_leave_nothing_for_ever(fresh, tmp_path):
    recipe, usual = fresh.recipe("killed"), tmp_path / "usual"
    usual.mkdir()

    def start():
        return fresh.start("retrain", str(fresh.file(recipe)), TMPDIR=str(usual))

    def copies() -> list[Path]:
        folders = os.walk(fresh.state.scratch)
        return [Path(folder, name) for folder, _, names in folders for name in names if name.endswith(".safetensors")]

    killed_at(start(), copies)
    assert copies()
    killed_at(start(), lambda: fresh.finished("promote"))
    assert status(fresh) == "RUNNING"
    said, _ = (last := start()).communicate(timeout=400)
    assert last.returncode == 0, said
    assert status(fresh) == "FINISHED"
    with_models = [path for path in usual.rglob("*") if path.suffix == ".safetensors" or "tuneline" in path.name]
    assert with_models == []
    assert fresh.versions("killed") == fresh.versions("killed-adapter") == [1]
    assert list(fresh.state.scratch.iterdir()) == list(fresh.state.locks.iterdir()) == []
    assert [path for path in fresh.state.steps.rglob("*") if path.suffix in (".partial", ".lock")] == []


def test_two_identical_retrains_at_once_both_end_well_and_tell_everything_once(fresh):
    recipe = fresh.recipe("twins")
    twins = [fresh.start("retrain", str(fresh.file(recipe))) for _ in range(2)]
    ends = [twin.communicate(timeout=500)[0] for twin in twins]
    assert [twin.returncode for twin in twins] == [0, 0], "\n".join(ends)
    assert fresh.versions("twins") == [1]
    assert status(fresh) == "FINISHED"
    (run,) = fresh.runs()
    assert sorted(curve(fresh, run)) == list(range(1, 201))
    for table, count in (("evaluation/rows.json", 48), ("merge/candidates.json", 1)):
        (path,) = fresh.state.artifacts.glob(f"**/{run}/artifacts/{table}")
        assert len(json.loads(path.read_text("utf-8"))["data"]) == count


def test_a_run_that_is_deleted_while_it_trains_is_made_again_and_has_everything(fresh):
    recipe = fresh.recipe("robbed", training={"max_steps": 600, "checkpoint_seconds": 1})
    process = fresh.start("retrain", str(fresh.file(recipe)))
    until = time.monotonic() + 300
    while not any(fresh.state.steps.glob("train/*.partial/checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    (first,) = fresh.runs()
    connect(fresh.uri).delete_run(first)
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    (second,) = fresh.runs()
    assert second != first and curve(fresh, second) == list(range(1, 601))
    inputs = connect(fresh.uri).get_run(second).inputs.dataset_inputs
    assert len(inputs) == 3, "the steps before the training are told to the new run too"
    assert status(fresh) == "FINISHED"
