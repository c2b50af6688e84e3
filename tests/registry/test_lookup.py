"""Looking up a version without importing MLflow."""

import json
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import Request

import pytest

from tasks.errors import PermanentError, ServiceUnavailable
from tasks.registry import lookup
from tasks.registry.client import connect
from tasks.steps.state import State


def as_client_says(uri: str, name: str, alias: str) -> lookup.Version:
    found = connect(uri).get_model_version_by_alias(name, alias)
    return lookup.Version(
        name=name,
        version=int(found.version),
        run_id=found.run_id,
        source=found.source,
        tags=found.tags,
        description=found.description or "",
    )


@pytest.fixture
def store(tracking_uri, versions_of):
    versions_of("desk", 3)
    client = connect(tracking_uri)
    client.set_registered_model_alias("desk", "production", "2")
    client.set_registered_model_alias("desk", "candidate", "3")
    client.update_model_version("desk", "2", description="Better by 0.1.")
    return tracking_uri


def test_the_file_gives_the_clients_answer(store):
    assert lookup.find(store, "desk") == as_client_says(store, "desk", "production")
    assert lookup.find(store, "desk", "candidate") == as_client_says(store, "desk", "candidate")
    assert lookup.find(store, "desk", version=1).tags == {"digest": f"{0:064d}"}
    assert lookup.aliases(store, "desk") == {"production": 2, "candidate": 3}


def test_what_is_not_there_is_none(store, tmp_path):
    assert lookup.find(store, "desk", "staging") is None
    assert lookup.find(store, "other") is None
    assert lookup.find(store, "desk", version=9) is None
    assert lookup.aliases(store, "other") == {}
    missing = f"sqlite:///{tmp_path}/missing.db"
    assert lookup.find(missing, "desk") is None and lookup.aliases(missing, "desk") == {}
    assert not (tmp_path / "missing.db").exists()


def test_a_deleted_version_is_not_found(store):
    connect(store).delete_model_version("desk", "2")
    assert lookup.find(store, "desk") is None
    assert lookup.find(store, "desk", version=2) is None


def test_an_unknown_schema_is_left_to_the_client(store, monkeypatch):
    want = lookup.find(store, "desk")
    monkeypatch.setattr(lookup, "_ALIASES", "select alias, version from aliases_of_the_future where name = ?")
    assert lookup.find(store, "desk") == want
    assert lookup.aliases(store, "desk") == {"production": 2, "candidate": 3}
    assert lookup.find(store, "desk", "staging") is None and lookup.find(store, "other") is None


def test_a_file_that_is_no_database_is_said(tmp_path):
    (tmp_path / "notes.db").write_text("notes " * 100)
    with pytest.raises(PermanentError, match="not MLflow's database"):
        lookup.find(f"sqlite:///{tmp_path}/notes.db", "desk")


def test_a_look_up_imports_no_mlflow_and_takes_a_tenth_of_a_second(store):
    script = (
        "import sys, time\nfrom tasks.registry import lookup\nstart = time.perf_counter()\n"
        f"found = lookup.find({store!r}, 'desk')\nseconds = time.perf_counter() - start\n"
        "print(found.version, 'mlflow' in sys.modules, seconds)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    version, imported, seconds = done.stdout.split()
    assert (version, imported) == ("2", "False")
    assert float(seconds) < 0.1


def test_no_module_of_the_registry_imports_mlflow_before_it_is_used():
    modules = sorted(path.stem for path in Path(lookup.__file__).parent.glob("[a-z]*.py"))
    assert len(modules) == 17
    imports = "".join(f"import tasks.registry.{name}\n" for name in modules)
    script = f"{imports}import sys\nprint('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class Registry(BaseHTTPRequestHandler):
    """The three answers of MLflow's REST API, as a server of this release gives them."""

    status = 200
    seen: list[str] = []  # noqa: RUF012

    def do_GET(self):
        Registry.seen.append(self.headers.get("Authorization", ""))
        version = {
            "name": "desk",
            "version": "7",
            "run_id": "r",
            "source": "models:/m-1",
            "tags": [{"key": "k", "value": "v"}],
        }
        status, body = Registry.status, {"model_version": version}
        if "registered-models/get" in self.path:
            body = {"registered_model": {"name": "desk", "aliases": [{"alias": "production", "version": "7"}]}}
        if "alias=staging" in self.path:
            status, body = (
                400,
                {"error_code": "INVALID_PARAMETER_VALUE", "message": "Registered model alias staging not found."},
            )
        if "name=other" in self.path:
            status, body = 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "not found"}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(body).encode())

    def log_message(self, *_):
        """Be quiet."""


@pytest.fixture
def server():
    listening = HTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    Registry.status, Registry.seen = 200, []
    yield f"http://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    listening.server_close()


def test_a_server_is_asked_over_rest_with_the_callers_credentials(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
    found = lookup.find(server, "desk")
    assert (found.version, found.tags, found.description) == (7, {"k": "v"}, "")
    assert lookup.find(server, "desk", version=7) == found
    assert lookup.aliases(server, "desk") == {"production": 7}
    assert Registry.seen[0] == "Basic YW5uOnNlY3JldA=="
    assert lookup.find(server, "desk", "staging") is None
    assert lookup.find(server, "other") is None and lookup.aliases(server, "other") == {}


def test_the_login_may_stand_in_the_address_and_is_sent_as_a_header(server, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.replace("://", "://ann:secret@"))
    assert lookup.find(State(Path()).tracking_uri, "desk").version == 7
    assert Registry.seen == ["Basic YW5uOnNlY3JldA=="]


class Redirect(BaseHTTPRequestHandler):
    """Sends every question to the address `to`."""

    to = ""

    def do_GET(self):
        self.send_response(302)
        self.send_header("Location", self.to + self.path)
        self.end_headers()

    def log_message(self, *_):
        """Be quiet."""


def test_credentials_do_not_follow_a_redirect_to_another_server(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bob")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2SECRET")
    with HTTPServer(("127.0.0.1", 0), Redirect) as redirecting:
        threading.Thread(target=redirecting.serve_forever, daemon=True).start()
        Redirect.to = server
        with pytest.raises(PermanentError, match="redirects to " + server) as raised:
            lookup.find(f"http://127.0.0.1:{redirecting.server_port}", "desk")
        redirecting.shutdown()
    assert Registry.seen == [], "the other server was not even asked"
    assert "hunter2SECRET" not in str(raised.value)


@pytest.mark.parametrize(
    ("before", "after", "followed"),
    [
        ("http://desk.example/a", "https://desk.example/a", True),
        ("http://desk.example:5000/a", "https://desk.example:5000/a", True),
        ("http://desk.example:5000/a", "https://desk.example:6000/a", False),
        ("http://desk.example:5000/a", "https://desk.example/a", False),
        ("https://desk.example/a", "http://desk.example/a", False),
        ("http://desk.example/a", "http://desk.example.evil/a", False),
    ],
)
def test_another_port_is_another_server_for_a_redirect_too(before, after, followed):
    def redirected():
        return lookup._SameServer().redirect_request(Request(before), None, 302, "", {}, after)

    if followed:
        assert redirected().full_url == after
    else:
        with pytest.raises(PermanentError, match="Credentials are not sent there"):
            redirected()


def test_a_redirect_on_the_same_server_is_followed_with_the_credentials(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t")
    monkeypatch.setattr(Registry, "do_GET", moved_once(Registry.do_GET))
    assert lookup.find(f"{server}/old", "desk").version == 7
    assert Registry.seen == ["Bearer t"]


def moved_once(answer):
    def do_get(handler):
        if not handler.path.startswith("/old"):
            answer(handler)
            return
        handler.send_response(308)
        handler.send_header("Location", handler.path.removeprefix("/old"))
        handler.end_headers()

    return do_get


def test_a_refusal_is_permanent_and_a_failing_server_is_not(server):
    Registry.status = 403
    with pytest.raises(PermanentError, match="MLFLOW_TRACKING_USERNAME"):
        lookup.find(server, "desk")
    Registry.status = 503
    with pytest.raises(ServiceUnavailable, match="503"):
        lookup.find(server, "desk")


def test_a_server_that_is_not_there_is_unavailable_at_once():
    start = time.monotonic()
    with pytest.raises(ServiceUnavailable, match="Is it running"):
        lookup.find("http://127.0.0.1:9", "desk")
    assert time.monotonic() - start < 6
