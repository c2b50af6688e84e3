"""A recipe and a registered version in, its evaluation report out: the recipe's test rows, asked again."""

from prefect import flow

from flows.environment import prepare_environment
from flows.preflight import preflight
from tasks.artifacts import EvaluationReport
from tasks.evaluate import evaluate_registered
from tasks.preprocess import preprocess
from tasks.recipe.stages import Recipe
from tasks.registry.lookup import get_version
from tasks.steps.state import state
from tasks.validate import validate


@flow(name="evaluate", flow_run_name="{recipe.name}")
def evaluate_version(recipe: Recipe, version: int = 0) -> EvaluationReport:
    """Score a registered version, its base and the version in production on the recipe's test rows.

    Args:
        recipe: Where the test rows lie and how answers are scored; nothing is trained.
        version: Version of the registered model that the recipe names; 0 means the one in production.
    """
    here = state()
    prepare_environment(here)
    number = get_version(recipe.name, version, here.tracking_uri).version
    workspace = preflight(recipe, f"{recipe.name}/{number}")
    with workspace.run.finishing():
        dataset = validate(recipe, workspace)
        tokenized = preprocess(dataset, recipe, workspace)
        return evaluate_registered(number, dataset, tokenized, recipe, workspace)
