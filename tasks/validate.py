"""Sources in, a validated dataset out: splits, quarantine, report."""

from typing import TYPE_CHECKING

from tasks.artifacts import ValidatedDataset
from tasks.data.dataset import SHOWN, UNITS, dataset_inputs, validate_sources
from tasks.orchestration import show, shown_progress, step
from tasks.recipe.stages import Recipe
from tasks.steps.store import file_digest
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from tasks.registry.runs import MlflowRun


@step(retries=2, retry_delay_seconds=[10, 60])
def validate(recipe: Recipe, workspace: Workspace) -> ValidatedDataset:
    """Check every record and divide them by identity, or find the dataset these bytes already gave."""
    inputs = dataset_inputs(recipe, workspace.sources)
    with shown_progress(f"{recipe.name} validate", UNITS, "%") as meter:
        dataset = workspace.store.make(
            "validate",
            inputs,
            ValidatedDataset,
            lambda folder: validate_sources(recipe.data, folder, recipe.seed, recipe.name, meter, workspace.sources),
        )
    workspace.run.log_once(dataset, lambda run: _log_to_mlflow(run, dataset))
    show(f"{recipe.name}-data", dataset.path("report.md").read_text("utf-8"), "What is in the data.")
    return dataset


def _log_to_mlflow(run: "MlflowRun", dataset: ValidatedDataset) -> None:
    from tasks.registry import runs

    files = [dataset.path(name) for name in ("report.html", "report.json", "report.md")]
    # The quarantine file itself keeps its rows as they came and stays on this machine.
    files.append(dataset.path(SHOWN) / "quarantine.jsonl")
    runs.log_files(run, {"data": files})
    for split, context in (("train", "training"), ("validation", "validation"), ("test", "test")):
        source = str(dataset.path(f"{split}.jsonl"))
        tags = {"dataset": dataset.digest, "sources": ", ".join(dataset.sources)[:500]}
        runs.log_dataset(
            run,
            f"{dataset.name}-{split}",
            file_digest(dataset.path(f"{split}.jsonl")),
            source,
            context,
            dataset.rows[split],
            tags,
        )
