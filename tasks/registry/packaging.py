"""Make a logged model of a folder: weights and settings in, MLflow's id of a copy that loads by itself out.

The copy is one models-from-code file (`mlflow/serve_model.py`) beside the folder's own bytes. Why not MLflow's
transformers flavour: it writes the weights anew, and stores an adapter so that it loads wrong. Nothing is loaded or
pickled here: signature and requirements are written out, because inferring them would load the model twice.
"""

import re
import shutil
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple

from tasks.errors import ServiceUnavailable, StateUnusable
from tasks.project import shipped
from tasks.registry.database import local_folder as local_folder
from tasks.registry.runs import MlflowRun
from tasks.steps.scratch import scratch_folder

Kind = Literal["merged", "full", "adapter", "base"]
SERVE_MODEL = shipped("mlflow/serve_model.py")
REQUIRED = ("mlflow", "torch", "transformers", "safetensors", "tokenizers", "jinja2")
DIGEST_TAG = "digest"


class Package(NamedTuple):
    """What goes into one logged model; `artifacts` are files and folders by the name `serve_model.py` knows."""

    name: str
    kind: Kind
    tags: Mapping[str, str]
    artifacts: Mapping[str, Path]
    model_config: Mapping[str, Any]
    max_tokens: int
    temperature: float


class Logged(NamedTuple):
    """A logged model in MLflow; `found` is one that was there before."""

    id: str
    found: bool


def log_model(client: Any, run: MlflowRun, package: Package) -> Logged:
    """A logged model with this content: one that an interrupted registration or a deleted version left, or a new copy.

    Raises StateUnusable where `serve_model.py` is missing or there is no room for the copies, ServiceUnavailable where
    another machine registers the same content and took this copy for a torn one.
    """
    from mlflow.exceptions import MlflowException

    name = re.sub(
        r"[/:.%\"']", "-", package.name
    )  # MLflow allows less in a logged model's name than in a registered one's.
    query = f"name = '{name}' AND tags.{DIGEST_TAG} = '{package.tags[DIGEST_TAG]}'"
    there = client.search_logged_models(experiment_ids=[run.experiment_id], filter_string=query)
    if whole := [str(each.model_id) for each in there if str(each.status) == "READY"]:
        return Logged(whole[0], found=True)
    for torn in there:
        # Only what this run left. A torn one cannot be gone on with, because the run lists it as its output already and
        # MLflow takes that once.
        if torn.source_run_id == run.run_id:
            client.delete_logged_model(torn.model_id)
    logged = client.create_logged_model(
        run.experiment_id, name, source_run_id=run.run_id, tags=dict(package.tags), model_type=package.kind
    )
    try:
        _copy(run, package, logged)
    except MlflowException as fault:
        if fault.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise ServiceUnavailable(
            f"{run.tracking_uri}: the copy of {name} is gone while it was made: another machine registers the same."
        ) from fault
    return Logged(str(logged.model_id), found=False)


def check_installation() -> None:
    """Raise StateUnusable where the file that every version runs is not there."""
    if not SERVE_MODEL.is_file():
        raise StateUnusable(
            f"{SERVE_MODEL}: not there, and every version runs it. Install Tuneline again, or put its checkout back."
        )


def _copy(run: MlflowRun, package: Package, logged: Any) -> None:
    import mlflow.pyfunc
    from mlflow.models import Model

    check_installation()
    with scratch_folder() as scratch, warnings.catch_warnings():
        _check_room(package.artifacts.values(), scratch, local_folder(logged.artifact_location))
        warnings.filterwarnings("ignore", message=".*input example was not provided")
        # `Model.log` and not `pyfunc.log_model`: it takes the run by id, so no run has to be active (and be ended).
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            run_id=run.run_id,
            model_id=logged.model_id,
            python_model=str(SERVE_MODEL),
            # MLflow refuses a folder that is a link: what it leads to lies outside.
            artifacts={key: str(path.resolve()) for key, path in package.artifacts.items()},
            signature=_signature(package.max_tokens, package.temperature),
            pip_requirements=requirements(package.kind, bool(package.model_config.get("quantisation"))),
            # MLflow lets a consumer change only keys that are there.
            model_config={"limits": {}, **package.model_config},
        )


def _check_room(copied: Iterable[Path], scratch: Path, store: Path | None) -> None:
    """MLflow copies the weights twice: into the temporary folder, then into the artifact store."""
    files = [file for path in copied for file in (path.rglob("*") if path.is_dir() else [path])]
    size = sum(file.stat().st_size for file in files if file.is_file())
    needed: dict[int, tuple[Path, int]] = {}
    for place in [scratch, *([store] if store else [])]:
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        device = there.stat().st_dev
        needed[device] = (there, needed.get(device, (there, 0))[1] + size)
    for there, bytes_needed in needed.values():
        free = shutil.disk_usage(there).free
        if free < bytes_needed:
            raise StateUnusable(
                f"{there}: {free >> 20} MB free, registering needs {bytes_needed >> 20} MB; "
                "free space, or point TUNELINE_HOME elsewhere."
            )


def _signature(max_tokens: int, temperature: float) -> Any:
    """Parameters with their defaults; no schema of inputs, which would turn texts and columns away before the model."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    return ModelSignature(
        outputs=Schema([ColSpec("string")]),
        params=ParamSchema(
            [
                ParamSpec("max_tokens", "integer", max_tokens),
                ParamSpec("temperature", "double", temperature),
                ParamSpec("top_p", "double", 1.0),
                ParamSpec("seed", "long", None),
                ParamSpec("stop", "string", [], shape=(-1,)),
            ]
        ),
    )


def requirements(kind: Kind, quantised: bool = False) -> list[str]:
    """What a version needs, pinned to what is installed here, without local build marks such as `+cpu`."""
    wanted = [*REQUIRED, *(["peft"] if kind == "adapter" else []), *(["bitsandbytes"] if quantised else [])]
    pinned = []
    for package in wanted:
        try:
            pinned.append(f"{package}=={version(package).partition('+')[0]}")
        except PackageNotFoundError:
            raise StateUnusable(f"{package} is not installed; install this project with its dependencies.") from None
    return pinned
