"""Checks on a version in, a decision that was acted on out: proved by asking, written down, then the aliases move."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from tasks.artifacts import Basis, ModelVersions, PolicyCheck, PromotionDecision
from tasks.errors import WorkRefused
from tasks.output.credentials import without_credentials
from tasks.output.escaping import markdown_row, markdown_text
from tasks.recipe.stages import PromotionTarget
from tasks.registry import lookup
from tasks.registry.champions import label, same_weights, to_beat
from tasks.registry.lookup import get_version
from tasks.steps.state import State
from tasks.steps.store import digest

if TYPE_CHECKING:
    from tasks.registry.runs import MlflowRun

NOT_ROLLED_BACK = "not_rolled_back"
Flow = Literal["retrain", "promote"]


@dataclass(frozen=True)
class Proposal:
    """A version that is proposed for an alias, and what speaks for and against it.

    `champion` is what its report compares with. `forced` is why the checks do not count. `flow` is who proposes: a
    retraining does not undo what a person moved.
    """

    versions: ModelVersions
    target: PromotionTarget
    champion: str
    checks: Sequence[PolicyCheck]
    basis: Basis
    questions: Sequence[dict[str, Any]]
    flow: Flow
    forced: str = ""


def apply_decision(proposal: Proposal, state: State, run: "MlflowRun | None") -> PromotionDecision:
    """Prove the versions loadable, then move their aliases, if every check passed; write the decision down either way.

    A forced version has to answer all the same. Raises WorkRefused when production moved since the report was made, or
    while the version was asked: it was compared with another champion.
    """
    uri, versions = state.tracking_uri, proposal.versions
    candidate = get_version(versions.name, versions.version, uri)
    production = lookup.find(uri, versions.name, "production")
    checks = [*proposal.checks, *([] if proposal.forced else _not_rolled_back(candidate, production, uri))]
    decided = all(check.passed for check in checks) or bool(proposal.forced)
    standing = _standing(candidate, production, proposal.champion, uri) if decided and not proposal.forced else None
    if decided:
        checks = [*checks, loads_and_answers(versions, proposal.questions, state)]
    if proposal.forced:
        checks = [PolicyCheck(rule="forced", passed=True, reason=f"Forced: {proposal.forced}"), *checks]
    entry = _entry(proposal, decided, checks, uri)
    previous = _act(proposal, entry, _reasons(checks, decided), standing, state, run)
    return PromotionDecision(
        digest=digest(entry),
        name=versions.name,
        version=versions.version,
        adapter_version=versions.adapter_version,
        promote=decided,
        target=proposal.target.value,
        checks=checks,
        previous=previous,
        basis=proposal.basis,
        aliases=standing_aliases(versions.name, versions.adapter_name, state),
    )


def _act(
    proposal: Proposal,
    entry: Mapping[str, Any],
    reasons: str,
    standing: int | None,
    state: State,
    run: "MlflowRun | None",
) -> int:
    """Write the decision down and move the aliases, or leave them; returns what `previous` points at, 0 for none."""
    from tasks.registry import aliases

    versions = proposal.versions
    model = (state.tracking_uri, versions.name, versions.version)
    tags = {"decision": f"{'yes' if entry['promote'] else 'no'}: {reasons}"[:480], "champion": proposal.champion}
    if not entry["promote"]:
        aliases.refuse(*model, reasons, tags, state.ledger, run, decision=entry)
        return 0
    return aliases.promote(
        *model,
        versions.adapter_name,
        versions.adapter_version,
        proposal.target.value,
        reasons,
        tags,
        state.ledger,
        run,
        force=bool(proposal.forced),
        standing=standing,
        decision=entry,
    )


def _reasons(checks: Sequence[PolicyCheck], decided: bool) -> str:
    """What decided, in one text: the failures of a no, every check of a yes, and what a force overruled."""
    forced = next((check.reason for check in checks if check.rule == "forced"), "")
    failed = " ".join(check.reason for check in checks if not check.passed)
    if forced:
        return forced + (f" Against: {failed}" if failed else "")
    return " ".join(check.reason for check in checks if check.passed) if decided else failed


def standing_aliases(name: str, adapter_name: str, state: State) -> dict[str, dict[str, int]]:
    """Every alias there is of a model and of its adapter, for the last screen."""
    return {each: lookup.aliases(state.tracking_uri, each) for each in (name, adapter_name) if each}


def _entry(proposal: Proposal, decided: bool, checks: Sequence[PolicyCheck], uri: str) -> Mapping[str, Any]:
    return {
        "kind": "decision",
        "registry": without_credentials(uri),
        "name": proposal.versions.name,
        "version": proposal.versions.version,
        "promote": decided,
        "target": proposal.target.value,
        "champion": proposal.champion,
        "forced": proposal.forced,
        "flow": proposal.flow,
        "basis": proposal.basis.model_dump(),
        "reasons": [check.model_dump() for check in checks],
    }


def _not_rolled_back(candidate: lookup.Version, production: lookup.Version | None, uri: str) -> list[PolicyCheck]:
    """What was rolled back does not come back by itself, under another number neither.

    Where production has the candidate's weights, it was not the weights that somebody took back.
    """
    from tasks.registry import aliases

    weights = candidate.tags.get("weights", "")
    others = (
        {} if production and same_weights(production, weights) else aliases.rolled_back(uri, candidate.name, weights)
    )
    own = candidate.tags.get(aliases.ROLLED_BACK)
    found = {candidate.version: own} if own else others
    for number, why in sorted(found.items(), reverse=True)[:1]:
        what = f"Version {number} was rolled back" + ("" if own else " and has the same weights")
        reason = f"{what}: {why}. `tuneline promote --force` tries it again."
        return [PolicyCheck(rule=NOT_ROLLED_BACK, passed=False, reason=reason)]
    return []


def _standing(candidate: lookup.Version, production: lookup.Version | None, champion: str, uri: str) -> int:
    """The production version that the candidate's report is right for, 0 for none; WorkRefused where it is not."""
    if production and production.version == candidate.version:
        return production.version
    wanted = label(to_beat(production, candidate.tags.get("weights", ""), uri))
    if wanted != champion:
        same = f" (the candidate's weights, which were compared with {wanted or 'no champion'})"
        raise WorkRefused(
            f"promote: production is {label(production) or 'empty'} now{same if wanted != label(production) else ''}, "
            f"but the candidate was compared with {champion or 'no champion'}. Run the flow again, or `tuneline "
            f"evaluate RECIPE --version {candidate.version}`: only the comparison is repeated."
        )
    return production.version if production else 0


def loads_and_answers(versions: ModelVersions, questions: Sequence[dict[str, Any]], state: State) -> PolicyCheck:
    """Load each version as a consumer would and ask it; raises WorkRefused where it does not answer."""
    from tasks.registry import smoke_test

    uri, cache = state.tracking_uri, state.root / "cache"
    pairs = [(versions.name, versions.version), (versions.adapter_name, versions.adapter_version)]
    answers = [smoke_test.ask(uri, name, version, questions, cache) for name, version in pairs if name]
    if not any(answer.strip() for answer in answers[0]):
        raise WorkRefused(
            f"promote: {versions.name}/{versions.version} loads, but returned an empty answer to {questions[0]}."
        )
    same = len(answers) < 2 or answers[0] == answers[1]
    what = "It" if len(answers) < 2 else "Both versions"
    gave = "gave identical answers to" if same and len(answers) > 1 else "answered"
    reason = f"{what} loaded in a clean process and {gave} {len(questions)} test prompts."
    return PolicyCheck(rule="answers", passed=True, reason=reason)


def markdown(decision: PromotionDecision) -> str:
    """The decision for a run page: yes or no, then every rule with its reason."""
    stays = "stays in production, and would not be promoted now" if decision.stays_in_production else "not promoted"
    head = f"## {decision.name} v{decision.version}: " + (
        f"promoted to {decision.target}" if decision.promote else stays
    )
    rows = [("✓" if check.passed else "✗", check.rule, markdown_text(check.reason)) for check in decision.checks]
    return "\n".join([head, "", "| | rule | reason |", "| --- | --- | --- |", *map(markdown_row, rows), ""])
