"""A registered version in, what speaks for it out: evaluation report, parity, and questions to ask it.

The step store is looked at first: it has the newest evaluation. What another machine made is read from the registry,
where whoever may write could have put it, so it counts only as far as it can be verified.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from tasks.artifacts import EvaluationReport, MergedModel, ModelVersions, Parity, StepRecord
from tasks.errors import StateUnusable, WorkRefused
from tasks.evaluation.consistency import contradictions
from tasks.evaluation.report import report_digest
from tasks.files.digests import model_digest
from tasks.output.credentials import without_credentials
from tasks.registry import lookup, runs
from tasks.registry.champions import label, to_beat
from tasks.registry.contents import wanted_digest
from tasks.registry.lookup import get_version
from tasks.steps.state import State
from tasks.steps.store import StepStore, digest, read_step

ASKED_ROWS = 2
HERE = "the steps of this machine"
Record = TypeVar("Record", bound=StepRecord)


@dataclass(frozen=True)
class Evidence:
    """What a decision on a version rests on.

    `report` is None where no evaluation is left, or where `unverified` says why the one in MLflow does not count.
    `kind` is empty where the version's tag and its record do not agree on what was folded.
    """

    versions: ModelVersions
    report: EvaluationReport | None
    report_from: str
    unverified: str
    parity: Parity | None
    kind: str
    run: runs.MlflowRun | None

    @property
    def questions(self) -> list[dict[str, Any]]:
        """Rows to ask the version before an alias moves: test prompts where there are any."""
        prompts = [row["prompt"] for row in self.report.examples[:ASKED_ROWS]] if self.report else []
        return [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts or ["Who are you?"]]


def evidence_for(name: str, version: int, state: State) -> Evidence:
    """Everything known about a version.

    Raises UnknownVersion, ServiceUnavailable, and WorkRefused where tags and bytes of a version from elsewhere differ.
    """
    uri = state.tracking_uri
    found = get_version(name, version, uri)
    run = runs.MlflowRun(run_id=found.run_id, experiment_id="", tracking_uri=uri) if found.run_id else None
    adapter, number = adapter_of(found)
    versions = ModelVersions(
        digest=digest([without_credentials(uri), name, found.version, adapter, number]),
        name=name,
        version=found.version,
        adapter_name=adapter,
        adapter_version=number,
        mlflow_run_id=found.run_id,
        tracking_uri=without_credentials(uri),
    )
    report, report_from, unverified = _local_report(found, state), HERE, ""
    if report is None and run:
        report, unverified = _report_in_mlflow(found, run, state)
        report_from = f"MLflow run {run.run_id}, whose digests fit the version's bytes"
    parity, kind = _folding(found, run, state)
    return Evidence(versions, report, report_from if report else "", unverified, parity, kind, run)


def adapter_of(found: lookup.Version) -> tuple[str, int]:
    """Name and version of the adapter that a version is tied to; empty and 0 for none."""
    adapter, _, number = found.tags.get("adapter", "").rpartition("/")
    return (adapter, int(number)) if adapter and number.isdecimal() else ("", 0)


def verified_digests(found: lookup.Version, state: State) -> set[str]:
    """The digests of a version's bytes and of its adapter's, as they lie; WorkRefused where its tags name others."""
    from tasks.registry import versions

    digests = set()
    for name, number in ((found.name, found.version), adapter_of(found)):
        if name:
            version = get_version(name, number, state.tracking_uri)
            folder = versions.model_folder(state.tracking_uri, name, number, state.root / "cache")
            digests |= {model_digest(folder), wanted_digest(version.tags)}
    for tag in ("model", "weights"):
        if found.tags.get(tag) not in digests:
            raise WorkRefused(
                f"{label(found)}: the tag {tag} names the digest {found.tags.get(tag, 'of nothing')}, and no file of "
                "the version or of its adapter has it: bytes or tag were changed. Register it anew with `tuneline "
                f"retrain`, and look who writes to {state.tracking_uri}."
            )
    return digests


def _local_report(found: lookup.Version, state: State) -> EvaluationReport | None:
    """The newest report on this version's weights here; one that compares with the version to beat comes first."""
    uri = state.tracking_uri
    champion = label(to_beat(lookup.find(uri, found.name, "production"), found.tags.get("weights", ""), uri))
    digests = {found.tags.get("weights"), found.tags.get("model")} - {None}
    kept = _finished("evaluate", EvaluationReport, state, found.name)
    reports = [report for report in kept if report.candidate_digest in digests]
    return min(reports, key=lambda report: report.champion != champion, default=None)


def _report_in_mlflow(found: lookup.Version, run: runs.MlflowRun, state: State) -> tuple[EvaluationReport | None, str]:
    """The report in the version's MLflow run, or why it does not count.

    What it says of rows and answers cannot be proved again without asking. What can be is: that it is about these
    bytes, names versions that exist by their digests, and does not contradict itself.
    """
    content = runs.read_json(run, "evaluation/report.json")
    if content is None:
        return None, ""
    content.pop("title", None)
    try:
        report = EvaluationReport.model_validate({**content, "digest": ""})
    except ValidationError as fault:
        return None, f"it is not a report of this release of Tuneline ({fault.error_count()} faults)"
    faults = contradictions(report)
    if report.candidate_digest not in verified_digests(found, state):
        faults.append(f"it is about other weights ({report.candidate_digest[:12]}…) than the version holds")
    if report.base_digest != found.tags.get("base"):
        faults.append(f"its base has the digest {report.base_digest[:12]}…, the version's tag another")
    if report.champion:
        name, _, number = report.champion.rpartition("/")
        known = number.isdecimal() and name == found.name
        champion = lookup.find(state.tracking_uri, name, version=int(number)) if known else None
        if not champion or champion.tags.get("weights") != report.champion_digest:
            faults.append(f"its champion, {report.champion}, is not in the registry with the weights that it names")
    if faults:
        return None, "; ".join(faults)
    return report.model_copy(update={"digest": report_digest(report)}), ""


def _folding(found: lookup.Version, run: runs.MlflowRun | None, state: State) -> tuple[Parity | None, str]:
    """The parity of the version's merge and its kind, empty unless its tag and the record of its merge agree."""
    tag, model = found.tags.get("kind", ""), found.tags.get("model")
    for merged in _finished("merge", MergedModel, state):
        if merged.model_digest == model:
            return merged.parity, tag if merged.kind == tag else ""
    release = (runs.read_json(run, "release/release.json") if run else None) or {}
    try:
        merged = MergedModel.model_validate({**release.get("merge", {}), "parity": release.get("parity")})
    except ValidationError:
        return None, ""
    return merged.parity, tag if (merged.kind, merged.model_digest) == (tag, model) else ""


def _finished(kind: str, record: type[Record], state: State, name: str = "") -> Iterator[Record]:
    """Finished steps of a kind, the newest first; another model's are left out, and another release's format."""
    for folder in StepStore(state.steps).folders(kind):
        try:
            inputs = json.loads((folder / "inputs.json").read_text("utf-8"))
            if not name or inputs.get("name") == name:
                yield read_step(folder, record)
        except (OSError, ValueError, StateUnusable):
            continue
