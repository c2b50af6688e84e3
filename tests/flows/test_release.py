"""From records to a promoted model, and what a second run finds."""

import json
import shutil

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName
from prefect.client.schemas.sorting import FlowRunSort

from flows.preflight import preflight
from tasks.registry import ledger, lookup
from tasks.registry.client import connect

STEPS = ("dataset", "tokenized", "weights", "report", "merged", "versions", "decision")


def made(done) -> list[str]:
    """The steps that were not found."""
    return [name for name in STEPS if not getattr(done, name).reused]


def test_records_become_a_model_in_production_that_is_better_than_its_base(released, shop):
    assert released.decision.promote, released.decision.reasons
    # Another test of this state folder may have had the same records before.
    assert made(released)[-5:] == list(STEPS)[-5:]
    scores = released.report.suites["test"].scores
    assert scores["candidate"]["exact_match"].mean > 0.5 > scores["base"]["exact_match"].mean

    found = lookup.find(shop.uri, "colours", "production")
    adapter = lookup.find(shop.uri, "colours-adapter", "production")
    assert (found.version, adapter.version) == (1, 1)
    assert (found.tags["adapter"], adapter.tags["merged"]) == ("colours-adapter/1", "colours/1")
    assert found.tags["decision"].startswith("yes")


def test_the_mlflow_run_has_the_metrics_the_curve_and_the_reports(released, shop):
    client, run_id = connect(shop.uri), released.versions.mlflow_run_id
    run = client.get_run(run_id)
    scores = released.report.suites["test"].scores
    assert run.info.status == "FINISHED"
    assert run.data.metrics["test/exact_match"] == scores["candidate"]["exact_match"].mean
    assert run.data.metrics["base/test/exact_match"] == scores["base"]["exact_match"].mean
    assert [point.step for point in client.get_metric_history(run_id, "train/loss")] == list(range(1, 201))
    assert {entry.path for entry in client.list_artifacts(run_id, "evaluation")} >= {
        f"evaluation/{name}" for name in ("report.html", "report.md", "report.json", "rows.parquet", "rows.json")
    }
    assert {dataset.dataset.name for dataset in run.inputs.dataset_inputs} == {
        f"colours-{split}" for split in ("train", "validation", "test")
    }


def test_ledger_and_manifest_say_how_the_version_came_to_be(released, shop):
    kinds = [entry["kind"] for entry in ledger.entries(shop.state.ledger) if entry.get("name") == "colours"]
    assert kinds == ["decision", "promote"]
    manifest = json.loads(released.versions.path("release.json").read_text("utf-8"))
    assert manifest["digests"]["weights"] == released.weights.digest
    assert manifest["digests"]["data"] == released.dataset.digest
    assert manifest["recipe"]["name"] == "colours"


def test_a_second_run_finds_every_step_and_says_so(released, shop, retrain):
    runs, entries = len(shop.runs()), len(ledger.entries(shop.state.ledger))
    again = retrain(shop.recipe("colours"))
    assert made(again) == []
    assert shop.versions("colours") == shop.versions("colours-adapter") == [1]
    assert len(shop.runs()) == runs
    assert len(ledger.entries(shop.state.ledger)) == entries
    assert len(connect(shop.uri).get_metric_history(again.versions.mlflow_run_id, "test/exact_match")) == 1
    with get_client(sync_client=True) as client:
        named = FlowRunFilter(name=FlowRunFilterName(any_=["colours"]))
        last = client.read_flow_runs(flow_run_filter=named, sort=FlowRunSort.START_TIME_DESC, limit=1)[0]
        states = [
            run.state.name for run in client.read_task_runs(flow_run_filter=FlowRunFilter(id={"any_": [last.id]}))
        ]
    assert states == ["Reused"] * 7


def test_the_same_bytes_under_another_path_reuse_everything(released, shop, retrain):
    runs = len(shop.runs())
    moved = shutil.copy(shop.home / "train.jsonl", shop.home / "moved.jsonl")
    assert made(retrain(shop.recipe("colours", train=moved))) == []
    assert len(shop.runs()) == runs


def test_who_decides_and_where_the_sources_lie_do_not_make_another_release(released, shop):
    there = shutil.copytree(shop.home, shop.home / "copy", ignore=shutil.ignore_patterns("state", "copy"))
    first = preflight(shop.recipe("colours")).run
    other = preflight(
        shop.recipe(
            "colours",
            train=there / "train.jsonl",
            promotion={"target": "staging"},
            data={"test": [str(there / "test.jsonl")]},
        )
    ).run
    assert (first.key, first.parameters) == (other.key, other.parameters)
    assert preflight(shop.recipe("colours", training={"max_steps": 3})).run.key != first.key


def test_changed_evaluation_settings_repeat_the_evaluation_and_no_question(released, shop, retrain):
    answers = shop.finished("answers")
    done = retrain(shop.recipe("colours", evaluation={"resamples": 300}))
    assert made(done) == ["report", "decision"]
    assert shop.finished("answers") == answers
    assert released.report.asking_seconds > 0 == done.report.asking_seconds
    assert done.decision.promote
    assert shop.versions("colours") == [1]


@pytest.mark.slow
def test_changed_training_trains_again_on_the_tokens_that_are_there(released, shop, retrain):
    done = retrain(shop.recipe("colours", training={"max_steps": 2}))
    assert made(done) == ["weights", "report", "merged", "versions", "decision"]
    assert not done.decision.promote
    assert done.report.champion == "colours/1"
    assert lookup.aliases(shop.uri, "colours")["production"] == 1
