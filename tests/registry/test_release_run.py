"""One MLflow run a release: told of each step once, ended, and made again where it is gone."""

import threading
import time
from pathlib import Path

import pytest

from tasks import train
from tasks.artifacts import StepRecord
from tasks.errors import StateUnusable
from tasks.registry import lookup, runs
from tasks.registry.client import connect
from tasks.registry.release_run import ReleaseRun
from tasks.registry.runs import MlflowRun
from tasks.steps.progress import Meter
from tasks.steps.state import State
from tasks.steps.store import StepStore
from tasks.workspace import Workspace


@pytest.fixture
def state(tracking_uri, tmp_path, monkeypatch) -> State:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri)
    return State(tmp_path)


@pytest.fixture
def release(state):
    """The same release, each time as another flow run sees it."""
    return lambda: ReleaseRun(state, "key", "desk", {}, {"rank": 8})


@pytest.fixture
def step(state):
    def make(name: str) -> StepRecord:
        return StepStore(state.steps).make("step", {"name": name}, StepRecord, lambda _: StepRecord(digest=name))

    return make


def tagged(name: str):
    return lambda run: runs.log_tags(run, {name: "told"})


def tags(state: State, run_id: str) -> set[str]:
    return {name for name in connect(state.tracking_uri).get_run(run_id).data.tags if not name.startswith("mlflow.")}


def status(state: State, run: MlflowRun) -> str:
    return lookup.run_status(state.tracking_uri, run.run_id)


def test_a_flow_run_that_finds_everything_ends_the_run_that_a_killed_one_left_running(release, state, step):
    killed = release()
    killed.log_once(step("train"), tagged("train"))
    assert status(state, killed.open()) == "RUNNING"

    with (again := release()).finishing():
        again.log_once(step("train"), lambda run: pytest.fail("told twice"))
    assert status(state, killed.open()) == "FINISHED"


def test_a_flow_run_that_fails_before_it_writes_anything_leaves_a_finished_run_alone(release, state):
    with (first := release()).finishing():
        run = first.open()
    with pytest.raises(RuntimeError), release().finishing():
        raise RuntimeError
    assert status(state, run) == "FINISHED"


def test_a_failed_run_is_finished_by_the_flow_run_that_finds_everything(release, state):
    failed = release()
    with pytest.raises(RuntimeError), failed.finishing():
        run = failed.open()
        raise RuntimeError
    assert status(state, run) == "FAILED"
    with release().finishing():
        pass
    assert status(state, run) == "FINISHED"


def test_a_run_deleted_between_two_steps_is_made_again_and_told_both(release, state, step):
    flow = release()
    flow.log_once(step("train"), tagged("train"))
    connect(state.tracking_uri).delete_run(flow.open().run_id)
    flow.log_once(step("evaluate"), tagged("evaluate"))
    assert {"train", "evaluate"} <= tags(state, flow.open().run_id)


def test_a_run_deleted_while_it_is_told_of_a_step_is_made_again(release, state, step, caplog):
    flow, runs = release(), []

    def tell(run: MlflowRun) -> None:
        runs.append(run.run_id)
        if len(runs) == 1:
            connect(run.tracking_uri).delete_run(run.run_id)
        tagged("train")(run)

    flow.log_once(step("train"), tell)
    assert len(set(runs)) == 2 and "train" in tags(state, runs[1])
    assert "made again" in caplog.text


def test_a_deleted_experiment_ends_the_flow_with_the_way_to_bring_it_back(release, state, step):
    flow = release()
    run = flow.open()
    connect(state.tracking_uri).delete_experiment(run.experiment_id)
    with pytest.raises(StateUnusable, match="mlflow experiments restore"):
        flow.log_once(step("train"), tagged("train"))


@pytest.mark.parametrize(
    "content",
    [b"", b"nul", b"null", b"[]", b"7", b'{"run_id": 7}', b'{"run_id": "x", "more": 1}', b"\xff\xfe", b"\0" * 40],
    ids=["empty", "cut", "null", "a list", "a number", "a wrong type", "an unknown field", "no UTF-8", "zeros"],
)
def test_a_damaged_note_is_named_and_the_run_found_by_its_key(release, state, step, content, caplog):
    first = release()
    first.log_once(step("train"), tagged("train"))
    first.note.write_bytes(content)
    again = release()
    again.log_once(step("evaluate"), tagged("evaluate"))
    assert again.open().run_id == first.open().run_id
    assert str(first.note) in caplog.text


def test_two_flow_runs_that_find_the_same_step_at_once_tell_it_once(release, step):
    runs, evaluated = [], step("evaluate")
    first = release()
    first.open()

    def tell(run: MlflowRun) -> None:
        runs.append(run.run_id)
        time.sleep(0.3)

    flows = [threading.Thread(target=release().log_once, args=(evaluated, tell)) for _ in range(3)]
    for flow in flows:
        flow.start()
    for flow in flows:
        flow.join()
    assert runs == [first.open().run_id]


def test_a_run_that_cannot_be_ended_keeps_its_status_and_the_flow_its_outcome(release, state, caplog):
    flow = release()
    with pytest.MonkeyPatch.context() as patch, flow.finishing():
        run = flow.open()
        patch.setattr(runs, "finish", lambda *_: (_ for _ in ()).throw(StateUnusable("away")))
    assert status(state, run) == "RUNNING" and "until the next flow run" in caplog.text
    with release().finishing():
        pass
    assert status(state, run) == "FINISHED"


def test_no_lock_file_is_left_beside_a_step(release, state, step):
    release().log_once(step("train"), tagged("train"))
    left = {path.name for path in Path(state.steps / "step").iterdir() if path.is_file()}
    assert left == set()


@pytest.mark.parametrize("gone", ["run", "experiment"])
def test_a_training_goes_on_whatever_is_deleted_in_mlflow(release, state, monkeypatch, gone, caplog):
    flow = release()
    run = flow.open()
    client = connect(state.tracking_uri)
    _ = client.delete_run(run.run_id) if gone == "run" else client.delete_experiment(run.experiment_id)
    monkeypatch.setattr(train, "SEND_EVERY_SECONDS", 0.0)
    follower = train.Follower(
        Workspace(state, StepStore(state.steps), flow, "sources"), Meter("train", 12, "steps", lambda *_: None)
    )
    numbers = dict.fromkeys(("loss", "learning_rate", "grad_norm", "tokens_per_second"), 1.0)
    follower([{"event": "step", "time": 1.0, "step": 1, **numbers}])
    if gone == "run":
        assert flow.open().run_id != run.run_id
    else:
        assert "training goes on" in caplog.text and not follower.reachable
