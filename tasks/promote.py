"""Versions and a report in, a decision out: decided by the policy, proved by asking, acted on last."""

from pathlib import Path
from typing import Any

from tasks.artifacts import EvaluationReport, MergedModel, ModelVersions, PolicyCheck, PromotionDecision, ValidatedDataset
from tasks.asking import suite_of
from tasks.errors import WorkRefused
from tasks.pages import show
from tasks.recipe import PromotionTarget, Recipe
from tasks.registry import ledger, lookup, policy
from tasks.retries import verb
from tasks.store import digest
from tasks.workplace import Workplace

VERSION = 1
ASKED_ROWS = 2


@verb(retries=3, retry_delay_seconds=[5, 30, 60])
def promote(
    versions: ModelVersions,
    report: EvaluationReport,
    merged: MergedModel,
    dataset: ValidatedDataset,
    recipe: Recipe,
    place: Workplace,
) -> PromotionDecision:
    """Let the policy decide, and move the aliases when every rule passed; a no is kept with its reasons too."""
    rules = policy.load(Path(recipe.promotion.policy))
    inputs = {
        "version": VERSION,
        "versions": versions.digest,
        "report": report.digest,
        "policy": rules,
        "target": recipe.promotion.target,
    }

    def build(folder: Path) -> PromotionDecision:
        checks = policy.decide(rules, report, merged.parity)
        questions = _questions(dataset)
        return settle(versions, report.champion, checks, recipe.promotion.target, questions, place)

    decision = place.store.make("promote", inputs, PromotionDecision, build)
    show(f"{recipe.name}-decision", markdown(decision), "Promoted, or why not.")
    return decision


def settle(
    versions: ModelVersions,
    champion: str,
    checks: list[PolicyCheck],
    target: PromotionTarget,
    questions: list[dict[str, Any]],
    place: Workplace,
    force: bool = False,
) -> PromotionDecision:
    """Prove the versions loadable, then move their aliases, if every check passed; write the decision down either way.

    Raises WorkRefused when production moved since the report was made: it compared with another champion.
    """
    uri = place.state.tracking_uri
    checks = [*checks, *_not_rolled_back(uri, versions, force)]
    decided = all(check.passed for check in checks) or force
    if decided:
        _check_champion(uri, versions, champion)
        checks = [*checks, *_asked(versions, questions, place)]
    reasons = " ".join(check.reason for check in checks if check.passed == decided)
    entry = {
        "kind": "decision",
        "name": versions.name,
        "version": versions.version,
        "promote": decided,
        "target": target.value,
        "champion": champion,
        "reasons": [check.model_dump() for check in checks],
    }
    run = place.run.open()
    ledger.append(place.state.ledger, entry, run)
    from tasks.registry import aliases

    tags = {"decision": f"{'yes' if decided else 'no'}: {reasons}"[:480], "champion": champion}
    previous = 0
    if decided:
        previous = aliases.promote(
            uri,
            versions.name,
            versions.version,
            versions.adapter_name,
            versions.adapter_version,
            target.value,
            reasons,
            tags,
            place.state.ledger,
            run,
            force,
        )
    else:
        aliases.refuse(uri, versions.name, versions.version, reasons, tags)
    return PromotionDecision(
        digest=digest(entry),
        name=versions.name,
        version=versions.version,
        adapter_version=versions.adapter_version,
        promote=decided,
        target=target.value,
        checks=checks,
        previous=previous,
    )


def _not_rolled_back(uri: str, versions: ModelVersions, force: bool) -> list[PolicyCheck]:
    found = lookup.find(uri, versions.name, version=versions.version)
    why = found.tags.get("rolled_back") if found else None
    if not why or force:
        return []
    reason = f"Version {versions.version} was rolled back: {why}. `tuneline promote --force` tries it again."
    return [PolicyCheck(rule="not_rolled_back", passed=False, reason=reason)]


def _check_champion(uri: str, versions: ModelVersions, champion: str) -> None:
    now = lookup.find(uri, versions.name, "production")
    standing = f"{now.name}/{now.version}" if now else ""
    if standing not in (champion, f"{versions.name}/{versions.version}"):
        raise WorkRefused(
            f"promote: production is {standing or 'empty'} now, but the candidate was compared with "
            f"{champion or 'no champion'}. Run the flow again: only the comparison is repeated."
        )


def _questions(dataset: ValidatedDataset) -> list[dict[str, Any]]:
    rows = suite_of(dataset.path("test.jsonl"), "test", ASKED_ROWS).rows
    return [{"messages": [{"role": m["role"], "content": m["content"]} for m in row.messages]} for row in rows]


def _asked(versions: ModelVersions, questions: list[dict[str, Any]], place: Workplace) -> list[PolicyCheck]:
    """Load each version as a consumer would and ask it; raises WorkRefused where it does not answer."""
    from tasks.registry import versions as registered

    uri, cache = place.state.tracking_uri, place.state.root / "cache"
    pairs = [(versions.name, versions.version), (versions.adapter_name, versions.adapter_version)]
    answers = [registered.ask(uri, name, version, questions, cache) for name, version in pairs if name]
    if not any(answer.strip() for answer in answers[0]):
        raise WorkRefused(f"promote: {versions.name}/{versions.version} loads, but answers nothing to {questions[0]}.")
    same = len(answers) < 2 or answers[0] == answers[1]
    what = "It" if len(answers) < 2 else "Merged model and adapter"
    reason = f"{what} loaded outside this project and answered {len(questions)} test prompts" + (
        " alike." if same and len(answers) > 1 else "."
    )
    return [PolicyCheck(rule="answers", passed=True, reason=reason)]


def markdown(decision: PromotionDecision) -> str:
    """The decision for a run page: yes or no, then every rule with its reason."""
    head = f"## {decision.name} v{decision.version}: " + (
        f"promoted to {decision.target}" if decision.promote else "not promoted"
    )
    rows = [f"| {'✓' if check.passed else '✗'} | {check.rule} | {check.reason} |" for check in decision.checks]
    return "\n".join([head, "", "| | rule | reason |", "| --- | --- | --- |", *rows, ""])
