"""A method's recipe in, what it cost and gave out; imported only when the environment is prepared."""

from datetime import UTC, datetime
from typing import Any

from prefect import flow

from benchmarks.methods.__main__ import Measured
from flows.preflight import preflight
from tasks.errors import WorkRefused
from tasks.evaluate import evaluate
from tasks.merge import merge
from tasks.preprocess import preprocess
from tasks.recipe.stages import Recipe
from tasks.train import train
from tasks.validate import validate


@flow(name="measure a method", flow_run_name="{recipe.name}")
def measure(recipe: Recipe) -> Measured:
    """Everything up to the merge; what is measured needs no registry."""
    workspace = preflight(recipe)
    with workspace.run.finishing():
        dataset = validate(recipe, workspace)
        tokenized = preprocess(dataset, recipe, workspace)
        weights = train(tokenized, recipe, workspace)
        report = evaluate(weights, dataset, tokenized, recipe, workspace)
        try:
            merged = merge(weights, dataset, tokenized, recipe, workspace)
            folded: dict[str, Any] = {
                "kind": merged.kind,
                "rule": merged.rule,
                "parity": merged.parity,
                "candidates": merged.candidates,
            }
        except WorkRefused as fault:
            print(fault)
            folded = {"kind": "refused"}
    scores = report.suites["test"].scores
    return Measured(
        date=f"{datetime.now(UTC):%Y-%m-%d}",
        learning_rate=recipe.training.highest_rate,
        rows=tokenized.rows["train"],
        steps=weights.steps,
        trainable=weights.trainable_parameters,
        peak_memory=weights.peak_memory,
        tokens_per_second=round(weights.tokens / weights.seconds, 1),
        saved=sum(path.stat().st_size for path in weights.path("weights").glob("*.safetensors")),
        base=scores["base"][report.primary_metric],
        score=scores["candidate"][report.primary_metric],
        **folded,
    )
