"""Write deployments/prefect.yaml: the quickstart's recipe in; a file for `prefect deploy --all` out.

Run it as `python -m flows.deployments` after the recipe or its file has changed.
"""

from typing import Any

import yaml

from tasks.project import ROOT
from tasks.recipe.file import load_recipe

RECIPE = ROOT / "recipes" / "quickstart.yaml"
TARGET = ROOT / "deployments" / "prefect.yaml"
NIGHTLY = {"cron": "0 2 * * *", "timezone": "UTC"}
DESCRIPTIONS = {
    "retrain": "From records to a model in production, or to the reasons why not. "
    "Steps whose inputs have not changed are reused.",
    "evaluate": "Score a registered version, its base and the version in production on the recipe's test rows. "
    "Nothing is trained, no alias is moved.",
    "promote": "Let the policy decide on a version, and move its aliases when the answer is yes.",
    "rollback": "Point production back at the version before, once that has shown that it still answers.",
}


def prefect_file() -> str:
    """The text of prefect.yaml; parameters are whole recipes, since the form merges a partial one with the defaults."""
    recipe = load_recipe(RECIPE)
    retrain = {
        **_deployment("retrain", "flows.retrain.retrain", {"recipe": recipe.model_dump(mode="json")}),
        "schedules": [NIGHTLY],
        "concurrency_limit": {"limit": 1, "collision_strategy": "CANCEL_NEW"},
    }
    chosen = {"name": recipe.name, "target": "production", "force": False, "reason": ""}
    content = {
        "pull": [{"prefect.deployments.steps.set_working_directory": {"directory": "{{ $TUNELINE_ROOT }}"}}],
        "deployments": [
            retrain,
            _deployment("evaluate", "flows.evaluate.evaluate_version", {"recipe": recipe.model_dump(mode="json")}),
            _deployment("promote", "flows.promote.promote_version", chosen),
            _deployment("rollback", "flows.rollback.roll_back", {"name": recipe.name}),
        ],
    }
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)


def _deployment(name: str, entrypoint: str, parameters: dict[str, Any]) -> dict[str, Any]:
    # A module, never a file: for flows/retrain.py:retrain Prefect puts flows/ on the path, and flows/evaluate.py hides
    # the evaluate library. Without a description it shows the docstring, its Args section run into one line.
    return {
        "name": name,
        "description": DESCRIPTIONS[name],
        "entrypoint": entrypoint,
        "work_pool": {"name": "tuneline"},
        "parameters": parameters,
    }


if __name__ == "__main__":
    TARGET.write_text(prefect_file(), "utf-8")
