import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.deployments import prefect_file
from tasks.recipe.stages import Recipe

FOLDER = Path(__file__).resolve().parents[2] / "deployments"


@pytest.fixture(scope="module")
def deployments() -> dict[str, dict]:
    content = yaml.safe_load((FOLDER / "prefect.yaml").read_text("utf-8"))
    return {deployment["name"]: deployment for deployment in content["deployments"]}


def test_the_kept_file_is_what_the_quickstart_recipe_gives() -> None:
    assert (FOLDER / "prefect.yaml").read_text("utf-8") == prefect_file(), "run `make deployments`"


def test_retrain_is_nightly_and_never_twice_at_a_time(deployments: dict[str, dict]) -> None:
    assert sorted(deployments) == ["evaluate", "promote", "retrain", "rollback"]
    assert deployments["retrain"]["schedules"] == [{"cron": "0 2 * * *", "timezone": "UTC"}]
    assert deployments["retrain"]["concurrency_limit"] == {"limit": 1, "collision_strategy": "CANCEL_NEW"}


def test_prefilled_recipes_are_whole(deployments: dict[str, dict]) -> None:
    """The form merges a partly filled recipe with the defaults of another tab."""
    for name in ("retrain", "evaluate"):
        filled = deployments[name]["parameters"]["recipe"]
        assert Recipe.model_validate(filled).model_dump(mode="json") == filled


def test_entrypoints_are_flows_that_take_the_prefilled_parameters(deployments: dict[str, dict]) -> None:
    for deployment in deployments.values():
        module, function = deployment["entrypoint"].rsplit(".", 1)
        flow = getattr(importlib.import_module(module), function)
        assert deployment["parameters"].keys() <= inspect.signature(flow.fn).parameters.keys()


def test_a_worker_that_loaded_a_flow_still_finds_the_libraries(deployments: dict[str, dict]) -> None:
    """A file as entrypoint puts flows/ on the path, where evaluate.py hides the library of that name."""
    entrypoint = deployments["retrain"]["entrypoint"]
    load = f"from prefect.flows import load_flow_from_entrypoint as load; load({entrypoint!r})"
    script = f"{load}; import tasks.evaluation.metrics"
    subprocess.run([sys.executable, "-c", script], cwd=FOLDER.parent, check=True, timeout=300)


def test_automations_watch_the_deployment_that_exists(deployments: dict[str, dict]) -> None:
    from prefect.automations import Automation

    kept = yaml.safe_load((FOLDER / "automations.yaml").read_text("utf-8"))["automations"]
    silent, again = (Automation.model_validate(automation) for automation in kept)
    assert silent.trigger.within.total_seconds() >= 3 * 30, "three heartbeats of 30 s"
    assert again.trigger.match_related
    assert kept[1]["trigger"]["match_related"]["prefect.resource.name"] in deployments


def test_compose_refers_only_to_what_it_defines() -> None:
    content = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))
    services = content["services"]
    assert sorted(services) == ["mlflow", "postgres", "prefect", "worker"]
    for service in services.values():
        assert set(service.get("depends_on", {})) <= services.keys()
        volumes = [volume.split(":")[0] for volume in service.get("volumes", [])]
        assert set(volumes) <= content["volumes"].keys()
        ports = service.get("ports", [])
        assert all(port.startswith("127.0.0.1:") for port in ports)
    environment = services["worker"]["environment"]
    assert environment["PREFECT_API_URL"] == "http://prefect:4200/api"
    assert environment["MLFLOW_TRACKING_URI"] == "http://mlflow:5000"


def test_compose_lets_no_web_page_in_and_keeps_secrets_out_of_addresses() -> None:
    text = (FOLDER / "compose.yaml").read_text("utf-8")
    services = yaml.safe_load(text)["services"]
    server, worker = services["prefect"]["environment"], services["worker"]["environment"]
    assert server["PREFECT_SERVER_API_AUTH_STRING"] == "${PREFECT_API_AUTH_STRING}"
    assert worker["PREFECT_API_AUTH_STRING"].startswith("${PREFECT_API_AUTH_STRING:?")
    assert server["PREFECT_SERVER_CORS_ALLOWED_ORIGINS"] == "http://127.0.0.1:4200,http://localhost:4200"
    assert "PREFECT_API_AUTH_STRING" not in services["mlflow"]["environment"]
    assert "PASSWORD}@" not in text
    for service in services.values():
        assert service["security_opt"] == ["no-new-privileges:true"]
    for name in ("prefect", "mlflow", "worker"):
        assert services[name]["cap_drop"] == ["ALL"]


def test_prefect_reads_the_database_of_compose_whatever_its_password_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import Settings
    from sqlalchemy.engine import make_url

    services = yaml.safe_load((FOLDER / "compose.yaml").read_text("utf-8"))["services"]
    database = {key: value for key, value in services["prefect"]["environment"].items() if "_DATABASE_" in key}
    assert len(database) == 6
    for name, value in database.items():
        monkeypatch.setenv(name, "p@ss/w:rd" if value == "${POSTGRES_PASSWORD}" else value)
    url = make_url(Settings().server.database.connection_url.get_secret_value())
    assert (url.password, url.host, url.port, url.database) == ("p@ss/w:rd", "postgres", 5432, "prefect")


def test_the_image_runs_as_nobody_special_and_is_built_from_what_it_copies_only() -> None:
    lines = (FOLDER / "Dockerfile").read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith("USER")] == ["USER tuneline"]
    copied = {name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]}
    ignored = (FOLDER.parent / ".dockerignore").read_text("utf-8").splitlines()
    assert "*" in ignored
    assert {line[1:] for line in ignored if line.startswith("!")} == copied


def test_the_image_copies_only_what_is_there() -> None:
    lines = (FOLDER / "Dockerfile").read_text("utf-8").splitlines()
    copied = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    assert len(copied) >= 9
    assert [name for name in copied if not (FOLDER.parent / name).exists()] == []
