"""Versions and a report in, a decision out: decided by the policy, proved by asking, acted on last."""

from pathlib import Path
from typing import Any

from tasks.artifacts import (
    EvaluationReport,
    MergedModel,
    ModelVersions,
    PolicyCheck,
    PromotionDecision,
    ValidatedDataset,
)
from tasks.asking import suite_of
from tasks.errors import WorkRefused
from tasks.evidence import ASKED_ROWS, evidence_for
from tasks.pages import show
from tasks.recipe import PromotionTarget, Recipe
from tasks.registry import lookup, policy
from tasks.retries import verb
from tasks.settings import State
from tasks.settling import NOT_ROLLED_BACK, settle
from tasks.workplace import Workplace

NOT_MOVED_AWAY = "not_moved_away"
VERSION = 1


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

    before = place.store.find("promote", place.store.key("promote", inputs), PromotionDecision)

    def build(_: Path) -> PromotionDecision:
        checks = [*policy.decide(rules, report, merged.parity), *_not_moved_away(before, place.state)]
        questions = _questions(dataset)
        run = place.run.open()
        return settle(versions, report.champion, checks, recipe.promotion.target, questions, place.state, run)

    decision = place.store.make(
        "promote", inputs, PromotionDecision, build, still_true=lambda found: _still_true(found, place.state)
    )
    _show(decision)
    return decision


@verb(retries=3, retry_delay_seconds=[5, 30, 60])
def promote_registered(
    name: str, version: int, target: PromotionTarget, forced: str, state: State
) -> PromotionDecision:
    """Let the policy decide on a version that exists, by its newest report; `forced` is why its no does not count."""
    known = evidence_for(name, version, state)
    if known.report is None and not forced:
        raise WorkRefused(
            f"promote: no evaluation of {name}/{version} is left here or in {state.tracking_uri}; "
            f"`tuneline evaluate RECIPE --version {version}` makes one."
        )
    checks = policy.decide(policy.load(known.policy), known.report, known.parity) if known.report else []
    champion = known.report.champion if known.report else ""
    decision = settle(known.versions, champion, checks, target, known.questions, state, known.run, forced)
    _show(decision)
    return decision


def _show(decision: PromotionDecision) -> None:
    line = f"Version {decision.version}: {'promoted' if decision.promote else 'not promoted'}."
    show(f"{decision.name}-decision", markdown(decision), line)


def _still_true(found: PromotionDecision, state: State) -> bool:
    """A yes holds while its alias is where it was put; a no that only kept a person's move holds until it is undone."""
    there = lookup.aliases(state.tracking_uri, found.name).get(found.target) == found.version
    if found.promote:
        return there
    kept = any(check.rule in (NOT_ROLLED_BACK, NOT_MOVED_AWAY) and not check.passed for check in found.checks)
    return not (kept and there)


def _not_moved_away(before: PromotionDecision | None, state: State) -> list[PolicyCheck]:
    """The same evidence said yes before and the alias is elsewhere now: whoever moved it is not overruled."""
    if before is None or not before.promote:
        return []
    version = lookup.find(state.tracking_uri, before.name, version=before.version)
    if version is None or version.tags.get("rolled_back"):
        return []
    reason = (
        f"Version {before.version} was promoted to {before.target} on this evidence and was moved away since; "
        f"`tuneline promote {before.name} {before.version}` decides anew."
    )
    return [PolicyCheck(rule=NOT_MOVED_AWAY, passed=False, reason=reason)]


def _questions(dataset: ValidatedDataset) -> list[dict[str, Any]]:
    rows = suite_of(dataset.path("test.jsonl"), "test", ASKED_ROWS).rows
    return [{"messages": [{"role": m["role"], "content": m["content"]} for m in row.messages]} for row in rows]


def markdown(decision: PromotionDecision) -> str:
    """The decision for a run page: yes or no, then every rule with its reason."""
    head = f"## {decision.name} v{decision.version}: " + (
        f"promoted to {decision.target}" if decision.promote else "not promoted"
    )
    rows = [f"| {'✓' if check.passed else '✗'} | {check.rule} | {check.reason} |" for check in decision.checks]
    return "\n".join([head, "", "| | rule | reason |", "| --- | --- | --- |", *rows, ""])
