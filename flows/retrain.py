"""A recipe in, a promotion decision out: the seven steps, in their order. Read this page first."""

from prefect import flow
from pydantic import BaseModel, ConfigDict

from flows.preflight import preflight, refuse_to_start_for_ever
from tasks.artifacts import (
    EvaluationReport,
    MergedModel,
    ModelVersions,
    PromotionDecision,
    TokenizedDataset,
    TrainedWeights,
    ValidatedDataset,
)
from tasks.evaluate import evaluate
from tasks.merge import merge
from tasks.planning.auto import resolve_method
from tasks.preprocess import preprocess
from tasks.promote import promote
from tasks.recipe.stages import Recipe
from tasks.register import register
from tasks.steps.state import state
from tasks.train import train
from tasks.validate import validate


class Retrained(BaseModel):
    """What every step of one retraining left behind."""

    model_config = ConfigDict(frozen=True)

    dataset: ValidatedDataset
    tokenized: TokenizedDataset
    weights: TrainedWeights
    report: EvaluationReport
    merged: MergedModel
    versions: ModelVersions
    decision: PromotionDecision


@flow(name="retrain", flow_run_name="{recipe.name}")
def retrain(recipe: Recipe) -> Retrained:
    """From records to a model in production, or to the reasons why not.

    Args:
        recipe: Everything this retraining is told: data, base model, method, evaluation, promotion.
    """
    refuse_to_start_for_ever()
    recipe = resolve_method(recipe, state())
    workspace = preflight(recipe)
    with workspace.run.finishing():
        dataset = validate(recipe, workspace)
        tokenized = preprocess(dataset, recipe, workspace)
        weights = train(tokenized, recipe, workspace)
        report = evaluate(weights, dataset, tokenized, recipe, workspace)
        merged = merge(weights, dataset, tokenized, recipe, workspace)
        versions = register(dataset, tokenized, weights, report, merged, recipe, workspace)
        decision = promote(versions, report, merged, dataset, recipe, workspace)
    return Retrained(
        dataset=dataset,
        tokenized=tokenized,
        weights=weights,
        report=report,
        merged=merged,
        versions=versions,
        decision=decision,
    )
