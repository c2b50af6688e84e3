"""A registered version in, what speaks for it out: evaluation report, parity, policy and questions to ask it.

The step store is looked at first: it has the newest evaluation. What another machine made is read from the registry.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tasks.artifacts import EvaluationReport, ModelVersions, Parity
from tasks.champion import existing
from tasks.credentials import without_credentials
from tasks.recipe import PromotionRecipe
from tasks.registry import lookup, tracking
from tasks.settings import State
from tasks.store import MANIFEST, digest

ASKED_ROWS = 2


@dataclass(frozen=True)
class Evidence:
    """What a decision on a version rests on; `report` is None where no evaluation of it is left."""

    versions: ModelVersions
    report: EvaluationReport | None
    parity: Parity | None
    policy: Path
    run: tracking.MlflowRun | None

    @property
    def questions(self) -> list[dict[str, Any]]:
        """Rows to ask the version before an alias moves: test prompts where there are any."""
        prompts = [row["prompt"] for row in self.report.examples[:ASKED_ROWS]] if self.report else []
        return [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts or ["Who are you?"]]


def evidence_for(name: str, version: int, state: State) -> Evidence:
    """Everything known about a version. Raises UnknownVersion, ServiceUnavailable."""
    uri = state.tracking_uri
    found = existing(name, version, uri)
    run = tracking.MlflowRun(run_id=found.run_id, experiment_id="", tracking_uri=uri) if found.run_id else None
    release = (tracking.read_json(run, "release/release.json") if run else None) or {}
    adapter, _, number = found.tags.get("adapter", "").rpartition("/")
    versions = ModelVersions(
        digest=digest([without_credentials(uri), name, version, adapter, int(number or 0)]),
        name=name,
        version=version,
        adapter_name=adapter,
        adapter_version=int(number or 0),
        mlflow_run_id=found.run_id,
        tracking_uri=without_credentials(uri),
    )
    policy = release.get("recipe", {}).get("promotion", {}).get("policy") or PromotionRecipe().policy
    parity = Parity.model_validate(release["parity"]) if release.get("parity") else None
    return Evidence(versions, _report(found, run, state), parity, Path(policy), run)


def _report(found: lookup.Version, run: tracking.MlflowRun | None, state: State) -> EvaluationReport | None:
    """The newest report on this version's weights; one that compares with what is in production now comes first."""
    standing = lookup.find(state.tracking_uri, found.name, "production")
    champion = f"{standing.name}/{standing.version}" if standing and standing.version != found.version else ""
    weights = {found.tags.get("weights"), found.tags.get("model")} - {None}
    kept = sorted((state.steps / "evaluate").glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime, reverse=True)
    reports = [report for path in kept if (report := _kept(path, found.name)) and report.candidate_digest in weights]
    if run and not reports and (logged := tracking.read_json(run, "evaluation/report.json")):
        content = {key: value for key, value in logged.items() if key != "title"}
        reports = [EvaluationReport.model_validate({**content, "digest": digest(content)})]
    return min(reports, key=lambda report: report.champion != champion, default=None)


def _kept(manifest: Path, name: str) -> EvaluationReport | None:
    """A finished evaluation of this model in the step store; None for another model's, or another release's format."""
    try:
        inputs = json.loads(manifest.with_name("inputs.json").read_text("utf-8"))
        record = json.loads(manifest.read_text("utf-8"))["record"]
        return EvaluationReport.model_validate(record) if inputs["name"] == name else None
    except (OSError, ValueError, KeyError, ValidationError):
        return None
