"""Writing to an MLflow run, again and again."""

import sqlite3
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from multiprocessing import get_context

import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from tasks.errors import InvalidRecipe, RunGone, ServiceUnavailable, StateUnusable
from tasks.registry import database, ledger, lookup, runs, versions
from tasks.registry.client import connect
from tasks.registry.runs import Point
from tasks.train import points_of


def test_the_run_of_a_key_is_found_again_and_set_to_running(run):
    runs.finish(run)
    again = runs.open_run(run.tracking_uri, "tests", "release-1", "second name", {"attempt": "2"})
    assert again == run
    found = connect(run.tracking_uri).get_run(run.run_id)
    assert (found.info.status, found.info.run_name, found.data.tags["attempt"]) == ("RUNNING", "second name", "2")
    other = runs.open_run(run.tracking_uri, "tests", "release-2", "other", {})
    assert other.run_id != run.run_id


def test_artifacts_lie_beside_the_database_and_never_in_the_working_folder(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    note = tmp_path / "note.txt"
    note.write_text("kept")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/a.txt").write_text("a")
    runs.log_files(run, {"notes": [note, tmp_path / "more"], "": note})
    kept = {
        str(path.relative_to(tmp_path / "mlflow-artifacts")) for path in (tmp_path / "mlflow-artifacts").rglob("*.txt")
    }
    top = f"{run.run_id}/artifacts"
    assert kept == {f"{top}/notes/note.txt", f"{top}/notes/a.txt", f"{top}/note.txt"}
    assert not (tmp_path / "mlruns").exists()


def test_the_norm_of_gradients_that_overflowed_is_no_point():
    step = {"event": "step", "step": 3, "time": 1.5, "loss": 2.0, "learning_rate": 0.1, "tokens_per_second": 9.0}
    names = [[one.key for one in points_of([{**step, "grad_norm": norm}])] for norm in (0.5, float("inf"))]
    assert set(names[0]) - set(names[1]) == {"train/grad_norm"}
    assert len(names[1]) == 3


def test_points_sent_twice_are_stored_once(run):
    points = [Point("train/loss", 2.0 - step / 1000, step, 1_700_000_000_000 + step) for step in range(1200)]
    runs.log_points(run, points)
    runs.log_points(run, points)
    history = connect(run.tracking_uri).get_metric_history(run.run_id, "train/loss")
    assert len(history) == 1200
    assert [(each.step, each.timestamp) for each in history][-1] == (1199, 1_700_000_001_199)


def test_a_parameter_that_is_there_may_be_sent_again_but_not_changed(run):
    runs.log_parameters(run, {"rank": 8, "long": "x" * 7000})
    runs.log_parameters(run, {"rank": "8", "alpha": 16, "long": "x" * 7000})
    assert connect(run.tracking_uri).get_run(run.run_id).data.params["alpha"] == "16"
    with pytest.raises(InvalidRecipe, match="rank is '8', not '9'"):
        runs.log_parameters(run, {"rank": 9})


@pytest.mark.parametrize("source", ["folder", "hf:org/name"])
def test_a_split_becomes_a_dataset_input_with_its_whole_digest_in_a_tag(run, tmp_path, source):
    digest = "0123456789abcdef" * 4
    where = str(tmp_path) if source == "folder" else source
    for _ in range(2):
        runs.log_dataset(run, "desk", digest, where, "training", 120, {"split": "train"})
    (used,) = connect(run.tracking_uri).get_run(run.run_id).inputs.dataset_inputs
    assert used.dataset.digest == digest[:32]
    tags = {tag.key: tag.value for tag in used.tags}
    assert tags == {"mlflow.data.context": "training", "rows": "120", "split": "train", "digest": digest}
    assert where.removeprefix("hf:") in used.dataset.source


def test_rows_are_kept_whole_and_shown_in_part_once(run, tmp_path):
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"prompt": [f"p{n}" for n in range(500)]}).to_parquet(path)
    for _ in range(2):
        runs.log_rows(run, path, "evaluation")
    folder = tmp_path / "mlflow-artifacts" / run.run_id / "artifacts" / "evaluation"
    assert len(pd.read_parquet(folder / "rows.parquet")) == 500
    assert len(pd.read_json(folder / "rows.json", orient="split")) == 300
    shown = connect(run.tracking_uri).load_table(run.experiment_id, "evaluation/rows.json", [run.run_id])
    assert list(shown["prompt"]) == [f"p{n}" for n in range(300)]


def test_no_file_is_ever_made_in_the_temporary_folder(run, tmp_path, tiny_adapter, monkeypatch):
    # Whoever makes one there fails, since the folder does not exist.
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path))
    pd.DataFrame({"prompt": ["p"]}).to_parquet(tmp_path / "rows.parquet")
    runs.log_rows(run, tmp_path / "rows.parquet", "evaluation")
    (tmp_path / "report.json").write_text("{}")
    runs.log_files(run, {"evaluation": tmp_path / "report.json"})
    assert runs.read_json(run, "evaluation/report.json") == {}
    ledger.append(tmp_path / "ledger.jsonl", {"kind": "decision"}, run)
    version = versions.register_model(run, "desk-adapter", "adapter", tiny_adapter, "a" * 64, {})
    assert versions.model_folder(run.tracking_uri, "desk-adapter", version, tmp_path / "cache").is_dir()
    assert list((tmp_path / "scratch").iterdir()) == []


@pytest.mark.parametrize("status_of", [runs.status_of, lookup.run_status], ids=["the client", "the look-up"])
def test_a_run_has_a_status_until_it_is_deleted(run, status_of):
    assert status_of(run.tracking_uri, run.run_id) == "RUNNING"
    runs.finish(run)
    assert status_of(run.tracking_uri, run.run_id) == "FINISHED"
    connect(run.tracking_uri).delete_run(run.run_id)
    assert status_of(run.tracking_uri, run.run_id) == status_of(run.tracking_uri, "0" * 32) == ""


@pytest.mark.parametrize("gone", ["deleted", "deleted for good"])
def test_writing_to_a_run_that_was_deleted_is_a_failure_that_the_next_try_mends(run, tmp_path, gone):
    connect(run.tracking_uri).delete_run(run.run_id)
    if gone == "deleted for good":
        with closing(sqlite3.connect(database.sqlite_path(run.tracking_uri))) as content, content:
            content.execute("delete from tags")
            content.execute("delete from runs")
    writes = [
        lambda: runs.log_points(run, [Point("train/loss", 1.0, 1, 1)]),
        lambda: runs.log_dataset(run, "desk", "d" * 64, "hf:org/name", "training", 1),
        lambda: runs.finish(run),
    ]
    for write in writes:
        with pytest.raises(RunGone, match=run.run_id):
            write()
    assert runs.read_json(run, "evaluation/report.json") is None


def test_equal_points_of_two_processes_at_once_are_no_refusal(run):
    with pytest.raises(ServiceUnavailable, match="at this moment"), runs.service(run.tracking_uri):
        raise MlflowException("(sqlite3.IntegrityError) UNIQUE constraint failed: metrics.key, metrics.step", 1)


def _send(uri: str, run_id: str, points: list[Point]) -> str:
    try:
        runs.log_points(runs.MlflowRun(run_id=run_id, experiment_id="", tracking_uri=uri), points)
    except ServiceUnavailable:
        return "later"
    return "stored"


@pytest.mark.slow
def test_points_that_two_processes_send_at_once_are_stored_once(run):
    points = [Point(f"train/{name}", 2.0, step, 5) for name in ("loss", "grad_norm") for step in range(2000)]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        ends = list(pool.map(_send, [run.tracking_uri] * 8, [run.run_id] * 8, [points] * 8))
    assert "stored" in ends
    assert len(connect(run.tracking_uri).get_metric_history(run.run_id, "train/loss")) == 2000


def test_a_deleted_experiment_says_how_to_bring_it_back(run):
    connect(run.tracking_uri).delete_experiment(run.experiment_id)
    with pytest.raises(StateUnusable, match="mlflow experiments restore"):
        runs.open_run(run.tracking_uri, "tests", "release-1", "again", {})


def test_a_server_that_is_not_there_is_unavailable_within_seconds(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    start = time.monotonic()
    with pytest.raises(ServiceUnavailable, match=r"127\.0\.0\.1:9"):
        runs.open_run("http://127.0.0.1:9", "tests", "k", "n", {})
    assert time.monotonic() - start < 8


def _open(uri: str) -> str:
    return runs.open_run(uri, "tests", "one-key", "n", {}).run_id


@pytest.mark.slow
def test_a_fresh_store_opened_by_three_processes_at_once_is_whole_and_has_one_run(tmp_path):
    uri = f"sqlite:///{tmp_path}/state/mlflow.db"
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        assert len(set(pool.map(_open, [uri] * 3))) == 1
