"""Credentials in addresses stay out of messages, logs, records and command lines."""

import json
import logging
import os
import time
from pathlib import Path

import pytest

from flows.cli import doctor, ui
from flows.cli.logs import logged
from flows.environment import prepare_environment
from tasks import errors
from tasks.output.credentials import WithoutCredentials, split_login, without_credentials
from tasks.steps.state import State

ADDRESSES = [
    "postgresql://tuneline:DBPASSWORD_42@db/mlflow",
    "postgresql+psycopg2://tuneline:DBPASSWORD_42/+?#x@db:5432/mlflow",
    "mysql://tuneline:@DBPASSWORD_42@db/mlflow",
    "https://bob:DBPASSWORD_42@mlflow.example/base",
    "http://DBPASSWORD_42@mlflow.example:5000",
    "postgresql://db/mlflow?sslmode=require&password=DBPASSWORD_42",
    "https://store.example/file.jsonl?X=1&sig=DBPASSWORD_42&y=2",
    "s3://key:DBPASSWORD_42@bucket/prefix",
    "postgresql://tuneline:5432/DBPASSWORD_42@db:5432/mlflow",
    "postgresql://tuneline:it's\"DBPASSWORD_42@db/mlflow",
    "https://bucket.example/k?X-Amz-Algorithm=A&X-Amz-Signature=DBPASSWORD_42",
    "https://store.example/k?AWSAccessKeyId=DBPASSWORD_42",
    "https://login.example/?client_secret=DBPASSWORD_42&x=1",
    "https://login.example/#refresh_token=DBPASSWORD_42",
    "https://store.example/k?sas=DBPASSWORD_42",
    "mssql+pyodbc:///?odbc_connect=SERVER%3Ddb%3BPWD%3DDBPASSWORD_42",
]
PLAIN = [
    "models:/desk@production",
    "http://127.0.0.1:5000/#/models/desk@production",
    "https://hub.example/org/model@main",
    "sqlite:////home/ann@work/.tuneline/mlflow.db",
    "write to ann@example.org, see https://example.org",
    "'http://127.0.0.1:5000','ann@example.org'",
    "https://example.org/?page=2&sort=name#top",
]


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_part_of_a_login_is_left(address: str) -> None:
    safe = without_credentials(f"{address}: no answer from '{address}'")
    assert "DBPASSWORD_42" not in safe and "bob" not in safe
    assert safe.count("***") == 2


@pytest.mark.parametrize("text", PLAIN)
def test_addresses_without_a_login_are_left_as_they_are(text: str) -> None:
    assert without_credentials(text) == text
    assert split_login(text) == (text, None)


@pytest.mark.parametrize("text", ["a://" + "x:" * 50_000, "http://" * 10_000, "?" + "key" * 50_000 + "://"])
def test_a_long_text_without_a_login_is_looked_through_once(text: str) -> None:
    before = time.process_time()
    without_credentials(text)
    assert time.process_time() - before < 2


def error_types(kind: type[errors.TunelineError] = errors.TunelineError) -> list[type[errors.TunelineError]]:
    return [kind, *(child for each in kind.__subclasses__() for child in error_types(each))]


def test_every_error_hides_what_its_text_was_given() -> None:
    kinds = error_types()
    assert len(kinds) >= 13
    for kind in kinds:
        assert str(kind(f"{ADDRESSES[0]}: no answer")) == "postgresql://***@db/mlflow: no answer"


def test_the_log_hides_them_too(caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    prepare_environment(State(tmp_path))
    prepare_environment(State(tmp_path))
    log = logging.getLogger("tuneline")
    assert sum(isinstance(each, WithoutCredentials) for each in log.filters) == 1
    log.propagate = True
    log.warning("registry %s of %d", ADDRESSES[0], 3)
    assert caplog.messages[-1] == "registry postgresql://***@db/mlflow of 3"


def test_a_commands_log_file_hides_them_in_a_librarys_traceback(tmp_path: Path) -> None:
    with logged(State(tmp_path), "lookup") as path:
        try:
            raise ValueError(f"could not connect to {ADDRESSES[0]}")
        except ValueError:
            logging.getLogger("sqlalchemy").exception("pool")
    text = path.read_text("utf-8")
    assert "could not connect to postgresql://***@db/mlflow" in text and "DBPASSWORD_42" not in text


def test_the_login_of_a_servers_address_is_no_part_of_the_tracking_uri(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://bob:p%40ss@mlflow.example:8443/base")
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        os.environ.pop(name, None)
    prepare_environment(State(tmp_path))
    assert State(tmp_path).tracking_uri == "https://mlflow.example:8443/base"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("bob", "p@ss")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESSES[0])
    assert State(tmp_path).tracking_uri == ADDRESSES[0], "a database is connected to with it"


def test_no_command_line_and_no_line_of_doctor_shows_the_stores_password(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ADDRESSES[0])
    monkeypatch.setenv("PREFECT_API_URL", "http://ann:DBPASSWORD_42@127.0.0.1:9/api")
    state = State(tmp_path)
    assert "DBPASSWORD_42" not in " ".join(ui.mlflow_command(state, 5000))
    assert ui.environment(state, 4200, "pages:secret")["MLFLOW_BACKEND_STORE_URI"] == ADDRESSES[0]
    lines = [finding.found for finding in doctor.servers(state)]
    assert len(lines) == 2 and "DBPASSWORD_42" not in json.dumps(lines)
