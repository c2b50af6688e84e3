"""kill -9 at the worst moments: the next run finishes the work, repeats no finished step and registers once."""

import os
import time

import psutil
import pytest

from flows.preflight import preflight
from tasks.preprocess import preprocess
from tasks.registry import lookup
from tasks.registry.client import connect
from tasks.train import train
from tasks.validate import validate

STEPS = 600


def killed_when(shop, recipe, moment, what: str) -> None:
    """Start `tuneline retrain` and kill it, with nothing to say about it, at the first sight of a moment."""
    process = shop.start("retrain", str(shop.file(recipe)))
    until = time.monotonic() + 300
    while not moment():
        assert process.poll() is None, f"ended before {what}: {process.stdout.read()}"
        assert time.monotonic() < until, f"no {what} within 300 s"
        time.sleep(0.002)
    process.kill()
    process.communicate()


def long_recipe(shop, name: str):
    return shop.recipe(name, training={"max_steps": STEPS, "checkpoint_seconds": 1})


@pytest.mark.slow
def test_a_release_killed_in_three_steps_ends_as_one_that_never_was(fresh, shop, monkeypatch):
    recipe = long_recipe(fresh, "phoenix")
    steps = fresh.state.steps

    killed_when(fresh, recipe, lambda: any(steps.glob("train/*.partial/checkpoints/step-*")), "checkpoint")
    assert not fresh.finished("train")
    before = {kind: fresh.finished(kind) for kind in ("validate", "preprocess")}
    assert all(before.values())

    killed_when(fresh, recipe, lambda: len(fresh.finished("answers")) == 1, "first model's answers")
    assert not fresh.finished("evaluate")
    before |= {kind: fresh.finished(kind) for kind in ("train", "answers")}

    adapter = "phoenix-adapter"
    killed_when(fresh, recipe, lambda: lookup.find(fresh.uri, adapter, version=1), "adapter version")
    assert not fresh.finished("register")
    before |= {kind: fresh.finished(kind) for kind in ("evaluate", "merge")}

    fresh.finish(recipe)
    for kind, folders in before.items():
        assert folders.items() <= fresh.finished(kind).items(), f"a finished {kind} was made again"
    assert len(fresh.finished("answers")) == 2
    assert fresh.versions("phoenix") == fresh.versions(adapter) == [1]
    assert lookup.aliases(fresh.uri, "phoenix")["production"] == 1

    (run_id,) = fresh.runs()
    curve = [point.step for point in connect(fresh.uri).get_metric_history(run_id, "train/loss")]
    assert curve == list(range(1, STEPS + 1))
    log = next(steps.glob("train/*/events.jsonl")).read_text("utf-8")
    resumed = [line for line in log.splitlines() if '"start"' in line]
    assert len(resumed) == 2 and '"from_step": 0,' not in resumed[1]

    monkeypatch.setenv("TUNELINE_HOME", str(shop.state.root))
    straight = trained_only(long_recipe(shop, "straight"))
    weights = next(steps.glob("train/*/weights/adapter_model.safetensors"))
    assert weights.read_bytes() == straight.path("weights/adapter_model.safetensors").read_bytes()


def started_training(fresh, name: str):
    """A `tuneline retrain` on a temporary server, as soon as it has a checkpoint, and the processes that it started."""
    process = fresh.start("retrain", str(fresh.file(long_recipe(fresh, name))), PREFECT_API_URL="")
    until = time.monotonic() + 300
    while not any(fresh.state.steps.glob("train/*.partial/checkpoints/step-*")):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    started = psutil.Process(process.pid).children(recursive=True)
    lines = [" ".join(child.cmdline()) for child in started]
    assert any("uvicorn" in line for line in lines) and any("worker" in line for line in lines), lines
    return process, started


@pytest.mark.slow
def test_asked_to_end_it_leaves_a_checkpoint_and_no_process_behind(fresh):
    process, started = started_training(fresh, "asked")
    process.terminate()
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 143, said
    _, left = psutil.wait_procs(started, timeout=30)
    assert left == []
    assert any(fresh.state.steps.glob("train/*.partial/checkpoints/step-*"))


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux")
def test_killed_it_leaves_no_process_behind_either(fresh):
    process, started = started_training(fresh, "killed")
    process.kill()
    process.communicate(timeout=60)
    _, left = psutil.wait_procs(started, timeout=60)
    assert left == []


def trained_only(recipe):
    """The first three steps, without a stop."""
    place = preflight(recipe)
    with place.run.finishing():
        dataset = validate(recipe, place)
        return train(preprocess(dataset, recipe, place), recipe, place)


@pytest.mark.slow
def test_an_mlflow_server_that_does_not_answer_costs_no_training(fresh, monkeypatch):
    recipe = fresh.recipe("offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    process = fresh.start("retrain", str(fresh.file(recipe)))
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 1
    assert "http://127.0.0.1:9" in said and "Traceback" not in said
    trained = fresh.finished("train")
    assert len(trained) == 1

    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    fresh.finish(recipe)
    assert fresh.finished("train") == trained
    (run_id,) = fresh.runs()
    assert len(connect(fresh.uri).get_metric_history(run_id, "train/loss")) == 200
    assert fresh.versions("offline") == [1]
