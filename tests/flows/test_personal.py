"""Personal data in records never leaves the machine with what a run shows or uploads."""

import json

import pyarrow.parquet as pq
import pytest
from prefect.client.orchestration import get_client

pytestmark = pytest.mark.slow
SECRETS = ("@example.org", "13812345678")


def add_addresses(path, start):
    records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    for number, record in enumerate(records):
        if number % 3 == 0:
            record["instruction"] += f" Ask ann{start + number}@example.org or 13812345678."
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")


@pytest.mark.parametrize("treatment", ["report", "quarantine"])
def test_pages_files_in_mlflow_and_the_ledger_have_placeholders(fresh, retrain, capsys, treatment):
    from flows.cli import screens
    from tasks.output.terminal import console

    for number, name in enumerate(("train", "validation", "test")):
        add_addresses(fresh.home / f"{name}.jsonl", 100 * number)
    recipe = fresh.recipe("people", data={"personal_data": treatment}, training={"max_steps": 3})
    done = retrain(recipe)

    artifacts = [path for path in fresh.state.artifacts.rglob("*") if path.is_file()]
    uploaded = {str(path.relative_to(fresh.state.artifacts)): path for path in artifacts}
    assert {"quarantine.jsonl", "masks.html", "masks.md", "report.html", "rows.json", "rows.parquet"} <= {
        path.name for path in artifacts
    }
    for name, path in uploaded.items():
        text = json.dumps(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else path.read_bytes()
        assert not any((secret if isinstance(text, str) else secret.encode()) in text for secret in SECRETS), name
    quarantine = next(path for path in artifacts if path.name == "quarantine.jsonl").read_text("utf-8")
    about_people = [json.loads(line) for line in quarantine.splitlines() if '"email"' in line]
    assert bool(about_people) is (treatment == "quarantine")
    assert all(one["row"] is None and one["source"] for one in about_people)

    with get_client(sync_client=True) as client:
        pages = [
            str(artifact.data) for artifact in client.read_artifacts() if (artifact.key or "").startswith("people-")
        ]
    assert len(pages) >= 4
    assert not any(secret in page for secret in SECRETS for page in pages)

    console().print(screens.retrained(done, fresh.home / "people.yaml"))
    said = capsys.readouterr().out + fresh.state.ledger.read_text("utf-8")
    assert not any(secret in said for secret in SECRETS)
    kept = (done.dataset.folder / "test.jsonl").read_text("utf-8")
    assert ("@example.org" in kept) is (treatment == "report")
