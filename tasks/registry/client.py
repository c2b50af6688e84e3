"""The one way to MLflow's client: an address in, a client with bounded retries out, its database made and checked."""

import os
from typing import Any

from tasks.registry import database, relocation

CLIENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_UV_AUTO_DETECT": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""MLflow's own defaults hold the caller of a dead server for four minutes; what the user has set stays."""

_opened: set[tuple[int, str]] = set()


def configure(tracking_uri: str) -> None:
    """Point this process's MLflow at the store, with bounded retries and without pickles."""
    for name, value in CLIENT.items():
        os.environ.setdefault(name, value)
    import mlflow

    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)


def connect(tracking_uri: str) -> Any:
    """An MlflowClient. A process opens a SQLite store under a lock once: two migrating it together break it.

    Raises StateUnusable for a registry that was moved and still names the files of the old place.
    """
    configure(tracking_uri)
    from mlflow import MlflowClient

    path = database.sqlite_path(tracking_uri)
    if path is None or (os.getpid(), tracking_uri) in _opened:
        return MlflowClient(tracking_uri, tracking_uri)
    make_ready(tracking_uri)
    with database.alone(path):
        client = MlflowClient(tracking_uri, tracking_uri)
        client.search_experiments(max_results=1)
    _opened.add((os.getpid(), tracking_uri))
    return client


def make_ready(tracking_uri: str) -> None:
    """Make the tables of a SQLite store that has none yet, before anything else opens it. Raises StateUnusable."""
    relocation.check(tracking_uri)
    if path := database.sqlite_path(tracking_uri):
        with database.alone(path):
            database.prepare(path)
