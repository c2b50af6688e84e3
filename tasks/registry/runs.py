"""Tell MLflow about a retraining: points, parameters, files and datasets in, a run with each of them once out.

Everything here may be repeated after a crash: the MLflow run is found again by its key, a point keeps the timestamp of
the event log (MLflow stores an equal point once), and a parameter that is already there is left alone.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from tasks.errors import InvalidRecipe, RunGone, StateUnusable
from tasks.registry import database
from tasks.registry.client import connect
from tasks.registry.database import sqlite_path
from tasks.registry.faults import service as service
from tasks.steps.scratch import scratch_folder

KEY_TAG = "tuneline.release"
BATCH = 1000  # points one request may carry; MLflow accepts no more
TABLES_TAG = "mlflow.loggedArtifacts"
"""Where MLflow's pages look for the tables of a run."""
SHOWN_ROWS = 300
"""Rows of a table that people page through; the Parquet beside it has them all."""


class Point(NamedTuple):
    """One measured number of a training curve; `timestamp_ms` is when it was measured, in ms since 1970."""

    key: str
    value: float
    step: int
    timestamp_ms: int


class MlflowRun(BaseModel):
    """Which MLflow run a retraining writes to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    experiment_id: str
    tracking_uri: str


def open_run(
    tracking_uri: str,
    experiment: str,
    key: str,
    name: str,
    tags: Mapping[str, str],
    artifacts: Path | None = None,
) -> MlflowRun:
    """The MLflow run of this key, set to running again, or a new one.

    `artifacts` is where a store without a server keeps files; beside the database by default, in `mlflow-artifacts`.
    Raises ServiceUnavailable, StateUnusable (also for a deleted experiment).
    """
    with service(tracking_uri):
        client = connect(tracking_uri)
        experiment_id = _experiment(client, tracking_uri, experiment, artifacts)
        found = _runs(client, experiment_id, key)
        if not found:
            made = client.create_run(experiment_id, tags={**tags, KEY_TAG: key}, run_name=name).info.run_id
            # Another process, or a repeated request, may have made one too: the oldest is the run.
            found = _runs(client, experiment_id, key)
            if made != found[0]:
                client.delete_run(made)
        client.update_run(found[0], status="RUNNING", name=name)
        for tag, value in tags.items():
            client.set_tag(found[0], tag, value)
    return MlflowRun(run_id=found[0], experiment_id=experiment_id, tracking_uri=tracking_uri)


def _runs(client: Any, experiment_id: str, key: str) -> list[str]:
    query = f"tags.`{KEY_TAG}` = '{key}'"
    runs = client.search_runs([experiment_id], query, order_by=["attributes.start_time ASC", "attributes.run_id ASC"])
    return [run.info.run_id for run in runs]


def _experiment(client: Any, tracking_uri: str, name: str, artifacts: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=_location(tracking_uri, artifacts)))
        except MlflowException:
            # Another process may have made it in between.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        raise StateUnusable(
            f"{tracking_uri}: experiment {name!r} is deleted; "
            f"`mlflow experiments restore -x {found.experiment_id}` brings it back."
        )
    return str(found.experiment_id)


def _location(tracking_uri: str, artifacts: Path | None) -> str | None:
    """A server chooses for itself; any other store would put files into the working folder of whoever came first."""
    if database.is_server(tracking_uri):
        return None
    path = sqlite_path(tracking_uri)
    folder = artifacts or (path.with_name(database.ARTIFACTS) if path else None)
    if folder is None:
        raise StateUnusable(
            f"{tracking_uri}: no artifact location is configured for this store; set one or use an MLflow server."
        )
    return folder.absolute().as_uri()


def log_points(run: MlflowRun, points: Sequence[Point]) -> None:
    """Store points in batches; sending the same points again changes nothing."""
    from mlflow.entities import Metric

    with service(run.tracking_uri):
        client = connect(run.tracking_uri)
        for batch in _batches(points, BATCH):
            metrics = [Metric(point.key, float(point.value), point.timestamp_ms, point.step) for point in batch]
            client.log_batch(run.run_id, metrics=metrics)


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def log_parameters(run: MlflowRun, parameters: Mapping[str, Any]) -> None:
    """Store parameters that are not there yet.

    Raises InvalidRecipe where one is there with another value: then the key names another retraining's MLflow run.
    """
    from mlflow.entities import Param

    wanted = {key: str(value)[:6000] for key, value in parameters.items()}
    with service(run.tracking_uri):
        client = connect(run.tracking_uri)
        there = client.get_run(run.run_id).data.params
        other = [
            f"{key} is {there[key]!r}, not {value!r}" for key, value in wanted.items() if there.get(key, value) != value
        ]
        if other:
            raise InvalidRecipe(
                f"MLflow run {run.run_id} has other parameters: {'; '.join(other)}. Use a key of its own."
            )
        missing = [Param(key, value) for key, value in wanted.items() if key not in there]
        for batch in _batches(missing, 100):
            client.log_batch(run.run_id, params=batch)


def log_tags(run: MlflowRun, tags: Mapping[str, str]) -> None:
    """Set tags of the run."""
    with service(run.tracking_uri):
        client = connect(run.tracking_uri)
        for name, value in tags.items():
            client.set_tag(run.run_id, name, value)


def log_files(run: MlflowRun, files: Mapping[str, Path | list[Path]]) -> None:
    """Store files and the contents of folders under artifact folders; '' is the top."""
    with service(run.tracking_uri):
        client = connect(run.tracking_uri)
        for place, given in files.items():
            for path in given if isinstance(given, list) else [given]:
                log = client.log_artifacts if path.is_dir() else client.log_artifact
                log(run.run_id, str(path), place or None)


def read_json(run: MlflowRun, path: str) -> dict[str, Any] | None:
    """A JSON file among the run's artifacts, or None where it has no such file or is gone itself."""
    try:
        with service(run.tracking_uri), scratch_folder() as folder:
            client = connect(run.tracking_uri)
            if path not in {entry.path for entry in client.list_artifacts(run.run_id, path.rpartition("/")[0] or None)}:
                return None
            return dict(json.loads(Path(client.download_artifacts(run.run_id, path, str(folder))).read_text("utf-8")))
    except RunGone:
        return None


def log_dataset(
    run: MlflowRun,
    name: str,
    digest: str,
    source: str,
    context: str,
    rows: int,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Name a split as the run's input: `context` is training, validation or test; no data is read or copied.

    MLflow takes 36 characters of a digest, so the dataset has 32 hex digits and the tag `digest` all of them.
    """
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.exceptions import MlflowException

    with service(run.tracking_uri):
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The specified dataset source can be interpreted")
                where = resolve_dataset_source(source)
        except MlflowException:
            where = CodeDatasetSource(tags={"source": source})
        dataset = MetaDataset(source=where, name=name, digest=digest[:32])._to_mlflow_entity()
        marks = {"mlflow.data.context": context, "rows": str(rows), **(tags or {}), "digest": digest}
        used = DatasetInput(dataset, [InputTag(key, value) for key, value in marks.items()])
        connect(run.tracking_uri).log_inputs(run.run_id, [used])


def log_rows(run: MlflowRun, parquet: Path, folder: str) -> None:
    """Store a Parquet file under an artifact folder, and its first 300 rows beside it as a table the page can show.

    The table is written whole, in the form of MLflow's `log_table`: that one appends to a table that is there, so a
    repeated call, or another process with the same rows, would show every row twice.
    """
    import pyarrow.parquet as pq

    table = f"{folder}/{parquet.stem}.json"
    shown = next(pq.ParquetFile(parquet).iter_batches(batch_size=SHOWN_ROWS), None)
    with service(run.tracking_uri), scratch_folder():
        client = connect(run.tracking_uri)
        client.log_artifact(run.run_id, str(parquet), folder)
        if shown is None:
            return
        client.log_text(run.run_id, shown.to_pandas().to_json(orient="split", index=False, date_format="iso"), table)
        tables = json.loads(client.get_run(run.run_id).data.tags.get(TABLES_TAG, "[]"))
        if (entry := {"path": table, "type": "table"}) not in tables:
            client.set_tag(run.run_id, TABLES_TAG, json.dumps([*tables, entry]))


def finish(run: MlflowRun, status: str = "FINISHED") -> None:
    """End the MLflow run: FINISHED, FAILED or KILLED."""
    with service(run.tracking_uri):
        connect(run.tracking_uri).set_terminated(run.run_id, status)


def status_of(tracking_uri: str, run_id: str) -> str:
    """RUNNING, FINISHED, FAILED or KILLED; empty where the store does not have this MLflow run, or it is deleted."""
    try:
        with service(tracking_uri):
            info = connect(tracking_uri).get_run(run_id).info
    except RunGone:
        return ""
    return str(info.status) if info.lifecycle_stage == "active" else ""
