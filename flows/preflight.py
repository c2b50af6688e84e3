"""A recipe in, its workplace out, after everything that can be checked for nothing was checked."""

import logging
import os
import shutil
from pathlib import Path

from flows.environment import prepare_environment
from tasks.data.dataset import source_digest
from tasks.errors import InvalidBaseModel, PermanentError, ServiceUnavailable, StateUnusable
from tasks.files.model_files import CONFIG, json_object
from tasks.modeling.base_model import CARRIED, is_hub_name, verified
from tasks.modeling.stored_format import check_stored_format
from tasks.models import REGISTRY, check_adapters, check_support, described
from tasks.promotion import policy
from tasks.recipe.methods import CombineMethod, Method
from tasks.recipe.stages import BaseModelRecipe, Recipe
from tasks.registry import packaging, relocation
from tasks.steps.state import State, state
from tasks.steps.store import StepStore, writable
from tasks.training import processes
from tasks.workspace import Workspace

MOST_STARTS = 5
COPIES = 4
"""A base model's weights, merged, in a step, on its way to the registry, and there."""
log = logging.getLogger("tuneline")


def preflight(recipe: Recipe, evaluated: str = "") -> Workspace:
    """Check sources, policy, base and disk before anything is spent; `evaluated` is a registered version to be asked.

    Raises InvalidData, InvalidRecipe, InvalidBaseModel or StateUnusable with what to change.
    """
    here = state()
    prepare_environment(here)
    packaging.check_installation()
    relocation.check(here.tracking_uri)
    policy.load(policy.located(recipe.promotion.policy))
    sources = source_digest(recipe.data)
    _check_base(recipe.base, recipe.training.method, here)
    processes.check(recipe.compute, recipe.training.method)
    if isinstance(recipe.training.method, CombineMethod):
        check_adapters(recipe.training.method, here)
    with writable(here.root):
        probe = here.root / f".writable-{os.getpid()}"
        probe.write_text("", "utf-8")
        probe.unlink()
    _check_room(recipe, here.root)
    return Workspace.open(recipe, sources, evaluated)


def refuse_to_start_for_ever() -> None:
    """Stop a flow run that crashed and was started again too often: whatever kills it will kill it again."""
    from prefect.runtime import flow_run

    if (flow_run.run_count or 1) > MOST_STARTS:
        raise PermanentError(
            f"this flow run has crashed and restarted {flow_run.run_count} times; look at its log, "
            "then start a new one: finished steps are reused."
        )


def _check_base(base: BaseModelRecipe, method: Method, here: State) -> None:
    """A folder must hold a model; a name that can be nothing else than a folder must be one; its type must work here.

    Of a hub's or the registry's base, what it says of itself is looked at before anything is spent on it.
    """
    name = base.model
    if name in CARRIED:
        return
    if Path(name).is_dir():
        folder = verified(Path(name).resolve(), name, base.trust_remote_code).folder
    elif name.startswith(REGISTRY) or is_hub_name(name):
        try:
            folder = described(base, here)
        except ServiceUnavailable as fault:
            # The step that fetches the base tries again, and checks the same.
            log.warning("preflight: the base model is not tried yet. %s", fault)
            return
    else:
        raise InvalidBaseModel(
            f"base.model: {name!r} is not a folder ({Path(name).absolute()}), a bundled model "
            f"({', '.join(sorted(CARRIED))}), a hub name (org/name) or a models:/ address."
        )
    check_stored_format(json_object(folder / CONFIG), name, method.quantisation)
    check_support(folder, name, base.trust_remote_code, StepStore(here.steps))


def _check_room(recipe: Recipe, root: Path) -> None:
    """Refuse a disk that the copies of a local base model would fill."""
    folder = Path(recipe.base.model)
    if not folder.is_dir():
        return
    # An adapter on a quantised base is merged in two ways, of which the better one stays.
    needed = (COPIES + bool(recipe.training.method.quantisation)) * sum(
        path.stat().st_size for path in folder.glob("*.safetensors")
    )
    free = shutil.disk_usage(root).free
    if free < needed:
        raise StateUnusable(
            f"{root}: {free / 1e9:.1f} GB are free, but weights, merged model and registry copies take about "
            f"{needed / 1e9:.1f} GB; free space, or point TUNELINE_HOME elsewhere."
        )
