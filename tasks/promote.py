"""Versions and a report in, a decision out: decided by the policy, proved by asking, acted on last."""

from pathlib import Path
from typing import Any

from tasks.answers import suite_of
from tasks.artifacts import (
    Basis,
    EvaluationReport,
    MergedModel,
    ModelVersions,
    PolicyCheck,
    PromotionDecision,
    ValidatedDataset,
)
from tasks.errors import WorkRefused
from tasks.orchestration import show, step
from tasks.promotion import gate, history, policy
from tasks.promotion.decision import NOT_ROLLED_BACK, Proposal, apply_decision, markdown, standing_aliases
from tasks.promotion.evidence import ASKED_ROWS, HERE, evidence_for, verified_digests
from tasks.recipe.stages import PromotionTarget, Recipe
from tasks.registry import ledger, lookup
from tasks.registry.champions import label, same_weights
from tasks.registry.lookup import get_version
from tasks.steps.state import State
from tasks.steps.store import digest
from tasks.workspace import Workspace

NOT_MOVED_AWAY = "not_moved_away"
VERSION = 2


@step(retries=3, retry_delay_seconds=[5, 30, 60])
def promote(
    versions: ModelVersions,
    report: EvaluationReport,
    merged: MergedModel,
    dataset: ValidatedDataset,
    recipe: Recipe,
    workspace: Workspace,
) -> PromotionDecision:
    """Let the policy decide, and move the aliases when every rule passed; a no is kept with its reasons too."""
    rules_file = policy.located(recipe.promotion.policy)
    rules = policy.load(rules_file)
    inputs = {
        "version": VERSION,
        "versions": versions.digest,
        "report": report.digest,
        "merge": [merged.kind, merged.parity],
        "policy": rules,
        "target": recipe.promotion.target,
    }

    def build(_: Path) -> PromotionDecision:
        standing = _standing(versions.name, versions.version, workspace.state)
        basis = _basis(report, HERE, rules_file, rules)
        proposal = Proposal(
            versions=versions,
            target=recipe.promotion.target,
            champion=report.champion,
            checks=[
                *gate.decide(rules, report, merged.parity, merged.kind, standing),
                *_not_moved_away(versions, recipe.promotion.target, basis, workspace.state),
            ],
            basis=basis,
            questions=_questions(dataset),
            flow="retrain",
        )
        return apply_decision(proposal, workspace.state, workspace.run.open())

    decision = workspace.store.make(
        "promote", inputs, PromotionDecision, build, still_true=lambda found: _still_true(found, workspace.state)
    )
    if decision.reused:
        aliases = standing_aliases(versions.name, versions.adapter_name, workspace.state)
        previous = aliases[versions.name].get("previous", 0) if decision.promote else 0
        decision = decision.model_copy(update={"aliases": aliases, "previous": previous})
    _show(decision)
    return decision


@step(retries=3, retry_delay_seconds=[5, 30, 60])
def promote_registered(
    name: str, version: int, target: PromotionTarget, forced: str, rules_file: Path, state: State
) -> PromotionDecision:
    """Let the policy decide on a version that exists, by its newest report; `forced` is why its no does not count.

    `rules_file` is the policy of this machine: what the version's artifacts name is not looked at.
    """
    rules = policy.load(rules_file)
    known = evidence_for(name, version, state)
    checks: list[PolicyCheck] = []
    if known.report:
        verified_digests(get_version(name, version, state.tracking_uri), state)
        standing = _standing(name, version, state)
        checks = gate.decide(rules, known.report, known.parity, known.kind, standing)
    elif not forced:
        missing = f"the evaluation in {state.tracking_uri} does not count: {known.unverified}"
        raise WorkRefused(
            f"promote: no evaluation of {name}/{version} is left here"
            + (f", and {missing}" if known.unverified else f" or in {state.tracking_uri}")
            + f"; `tuneline evaluate RECIPE --version {version}` makes one."
        )
    proposal = Proposal(
        versions=known.versions,
        target=target,
        champion=known.report.champion if known.report else "",
        checks=checks,
        basis=_basis(known.report, known.report_from, rules_file, rules),
        questions=known.questions,
        flow="promote",
        forced=forced,
    )
    decision = apply_decision(proposal, state, known.run)
    _show(decision)
    return decision


def _basis(report: EvaluationReport | None, report_from: str, rules_file: Path, rules: policy.PromotionPolicy) -> Basis:
    return Basis(
        report=report.digest if report else "",
        report_from=report_from,
        policy=str(rules_file.absolute()),
        policy_digest=digest(rules),
    )


def _standing(name: str, version: int, state: State) -> gate.Standing:
    """What is in production, and whether it has the weights of this version."""
    production = lookup.find(state.tracking_uri, name, "production")
    candidate = lookup.find(state.tracking_uri, name, version=version)
    weights = candidate.tags.get("weights", "") if candidate else ""
    return gate.Standing(label(production), bool(production and same_weights(production, weights)))


def _show(decision: PromotionDecision) -> None:
    stays = "stays in production" if decision.stays_in_production else "not promoted"
    line = f"Version {decision.version}: {'promoted' if decision.promote else stays}."
    show(f"{decision.name}-decision", markdown(decision), line)


def _still_true(found: PromotionDecision, state: State) -> bool:
    """A yes holds while its alias is where it was put and it is the last word on its version.

    A no that only kept a person's move holds until that is undone; any other no holds.
    """
    there = lookup.aliases(state.tracking_uri, found.name).get(found.target) == found.version
    if found.promote:
        version = lookup.find(state.tracking_uri, found.name, version=found.version)
        return there and version is not None and version.tags.get("decision", "").startswith("yes")
    kept = any(check.rule in (NOT_ROLLED_BACK, NOT_MOVED_AWAY) and not check.passed for check in found.checks)
    return not (kept and there)


def _not_moved_away(versions: ModelVersions, target: PromotionTarget, basis: Basis, state: State) -> list[PolicyCheck]:
    """The same evidence said yes before and the alias is elsewhere now: the person who moved it is not overruled.

    A retraining that moved it with other settings of the same name is.
    """
    uri, name, number = state.tracking_uri, versions.name, versions.version
    entries = history.of_registry(ledger.entries(state.ledger), uri)
    now = lookup.aliases(uri, name).get(target.value, 0)
    if now == number or not history.got_there(entries, name, number, target.value, basis):
        return []
    version = lookup.find(uri, name, version=number)
    if history.moved_by_retraining(entries, name, target.value, now) or not version or version.tags.get("rolled_back"):
        return []
    reason = (
        f"Version {number} was promoted to {target.value} on this evidence and was moved away since; "
        f"`tuneline promote {name} {number}` decides anew."
    )
    return [PolicyCheck(rule=NOT_MOVED_AWAY, passed=False, reason=reason)]


def _questions(dataset: ValidatedDataset) -> list[dict[str, Any]]:
    rows = suite_of(dataset.path("test.jsonl"), "test", ASKED_ROWS).rows
    return [{"messages": [{"role": m["role"], "content": m["content"]} for m in row.messages]} for row in rows]
