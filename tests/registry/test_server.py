"""The same work through a real MLflow server: everything slow here is the server's start."""

import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.request import urlopen

import pytest

from tasks.files.digests import model_digest
from tasks.registry import aliases, contents, lookup, runs, smoke_test, versions
from tasks.registry.client import connect
from tasks.registry.runs import Point

pytestmark = pytest.mark.slow
ROWS = [{"instruction": "Where is it?"}]


@pytest.fixture(scope="module")
def server(empty_store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    stored = [
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1", *stored],
        env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        cwd=folder,
        start_new_session=True,
    )
    for _ in range(90):
        try:
            urlopen(f"http://127.0.0.1:{port}/health", timeout=2).close()
            break
        except OSError:
            assert process.poll() is None
            time.sleep(1)
    yield f"http://127.0.0.1:{port}"
    os.killpg(process.pid, 15)
    process.wait()


@pytest.fixture(scope="module")
def run(server):
    return runs.open_run(server, "tests", "release-1", "first", {})


def test_a_run_and_its_points_are_found_again(server, run):
    assert runs.open_run(server, "tests", "release-1", "first", {}) == run
    points = [Point("loss", 1.0 / step, step, 1_700_000_000_000 + step) for step in range(1, 1300)]
    for _ in range(2):
        runs.log_points(run, points)
    assert len(connect(server).get_metric_history(run.run_id, "loss")) == 1299


def test_versions_are_downloaded_once_asked_and_looked_up(server, run, tiny_base, tiny_adapter, tmp_path):
    versions.register_base(run, "tiny", tiny_base, model_digest(tiny_base))
    config = versions.base_config("models:/base-tiny/1", tiny_base)
    adapter = versions.register_model(run, "desk-adapter", "adapter", tiny_adapter, "a" * 64, {}, model_config=config)
    merged = versions.register_model(run, "desk", "full", tiny_base, "b" * 64, {"data": "d"})
    assert versions.register_model(run, "desk", "full", tiny_base, "b" * 64, {}) == merged
    folder = versions.model_folder(server, "desk", merged, tmp_path)
    assert (folder / "model.safetensors").read_bytes() == (tiny_base / "model.safetensors").read_bytes()
    assert versions.model_folder(server, "desk", merged, tmp_path) == folder
    (folder / "config.json").write_bytes(b"spoilt here, not in the store")
    assert versions.model_folder(server, "desk", merged, tmp_path) == folder
    assert (folder / "config.json").read_bytes() == (tiny_base / "config.json").read_bytes()
    assert lookup.find(server, "desk", version=merged).tags["package"] == contents.package_digest(folder.parents[1])
    answers = smoke_test.ask(server, "desk-adapter", adapter, ROWS, tmp_path)
    assert answers != smoke_test.ask(server, "desk", merged, ROWS, tmp_path)
    kept = {path.name.rpartition("-")[0] for path in tmp_path.iterdir() if path.is_dir() and "-" in path.name}
    assert kept == {"desk-1", "desk-adapter-1", "base-tiny-1"}

    assert (
        aliases.promote(
            server,
            "desk",
            merged,
            "desk-adapter",
            adapter,
            "production",
            "first",
            {"decision": "yes", "champion": ""},
            tmp_path / "l.jsonl",
            standing=0,
        )
        == 0
    )
    assert aliases.rolled_back(server, "desk", "w") == {}
    found, client = lookup.find(server, "desk"), connect(server).get_model_version_by_alias("desk", "production")
    assert (found.version, found.tags, found.description) == (merged, client.tags, client.description)
    assert (found.run_id, found.source) == (client.run_id, client.source)
    assert lookup.aliases(server, "desk-adapter") == {"candidate": 1, "staging": 1, "production": 1}
    assert lookup.find(server, "desk", "previous") is None and lookup.find(server, "none") is None
    assert lookup.find(server, "desk", version=9) is None


def test_many_who_register_one_content_at_once_end_with_one_version(server, run, tiny_adapter):
    def register(_: int) -> int:
        return versions.register_model(run, "crowd", "adapter", tiny_adapter, "c" * 64, {})

    with ThreadPoolExecutor(4) as pool:
        numbers = set(pool.map(register, range(4)))
    left = [int(each.version) for each in connect(server).search_model_versions("name = 'crowd'")]
    assert numbers == set(left) and len(left) == 1
