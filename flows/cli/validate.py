"""The data step alone: a recipe in; a validated dataset and the screen that shows it out."""

import json
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from tasks.artifacts import ValidatedDataset
from tasks.data.dataset import UNITS, dataset_inputs, source_digest, validate_sources
from tasks.recipe.stages import Recipe
from tasks.steps.progress import tracked
from tasks.steps.state import State
from tasks.steps.store import StepStore

OFFENDERS = 3


def validate_data(recipe: Recipe, state: State) -> ValidatedDataset:
    """Validate a recipe's sources, or find what the same bytes gave before, here or in a retraining.

    Raises InvalidData where the data is refused.
    """
    sources = source_digest(recipe.data)

    def build(folder: Path) -> ValidatedDataset:
        with tracked("validate", total=UNITS, unit="%") as advance:
            return validate_sources(recipe.data, folder, recipe.seed, recipe.name, advance, sources)

    return StepStore(state.steps).make("validate", dataset_inputs(recipe, sources), ValidatedDataset, build)


def validated(dataset: ValidatedDataset) -> RenderableType:
    """Splits with their rows, every check with its count and first lines, and where the report lies."""
    report = json.loads(dataset.path("report.json").read_text("utf-8"))
    return Group(
        Text(f"{dataset.name}: {dataset.format}", style="bold"),
        splits(dataset),
        findings(report["findings"]),
        Text.assemble(("report      ", "dim"), str(dataset.path("report.html")), overflow="fold"),
        Text.assemble(("quarantine  ", "dim"), str(dataset.path("quarantine.jsonl")), overflow="fold"),
        Text.assemble(
            "Next: put these sources under ", ("data.train", "bold"), " of a recipe and run tuneline retrain."
        ),
    )


def splits(dataset: ValidatedDataset) -> Table:
    """Records a split."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("split")
    table.add_column("records", justify="right")
    for split, count in dataset.rows.items():
        table.add_row(split, f"{count:,}", style="yellow" if split == "quarantine" and count else "")
    return table


def findings(found: list[dict[str, Any]]) -> RenderableType:
    """Checks that found something, with counts, what was done and the first lines; the others by name."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("check", no_wrap=True)
    table.add_column("rows", justify="right", no_wrap=True)
    table.add_column("done", no_wrap=True)
    table.add_column("first ones", overflow="fold")
    for finding in found:
        if finding["count"]:
            first = "\n".join(escape(line) for line in finding["offenders"][:OFFENDERS])
            table.add_row(finding["check"], f"{finding['count']:,}", finding["action"], first)
    clean = ", ".join(finding["check"] for finding in found if not finding["count"])
    rest = Text(f"Nothing found by: {clean}." if clean else "", style="dim")
    return Group(table, rest) if table.row_count else rest
