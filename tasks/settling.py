"""Checks on a version in, a decision that was acted on out: proved by asking, written down, then the aliases move."""

from typing import TYPE_CHECKING, Any

from tasks.artifacts import ModelVersions, PolicyCheck, PromotionDecision
from tasks.errors import WorkRefused
from tasks.recipe import PromotionTarget
from tasks.registry import ledger, lookup
from tasks.settings import State
from tasks.store import digest

if TYPE_CHECKING:
    from tasks.registry.tracking import MlflowRun

NOT_ROLLED_BACK = "not_rolled_back"


def settle(
    versions: ModelVersions,
    champion: str,
    checks: list[PolicyCheck],
    target: PromotionTarget,
    questions: list[dict[str, Any]],
    state: State,
    run: "MlflowRun | None",
    forced: str = "",
) -> PromotionDecision:
    """Prove the versions loadable, then move their aliases, if every check passed; write the decision down either way.

    `forced` is why the checks do not count; the version has to answer all the same. Raises WorkRefused when production
    moved since the report was made: it compared with another champion.
    """
    from tasks.registry import aliases

    uri = state.tracking_uri
    checks = [*checks, *_not_rolled_back(uri, versions, bool(forced))]
    decided = all(check.passed for check in checks) or bool(forced)
    if decided:
        if not forced:
            _check_champion(uri, versions, champion)
        checks = [*checks, asked(versions, questions, state)]
    reasons = " ".join(check.reason for check in checks if check.passed == decided)
    if forced:
        checks = [PolicyCheck(rule="forced", passed=True, reason=f"Forced: {forced}"), *checks]
        failed = " ".join(check.reason for check in checks if not check.passed)
        reasons = f"Forced: {forced}" + (f" Against: {failed}" if failed else "")
    entry = {
        "kind": "decision",
        "name": versions.name,
        "version": versions.version,
        "promote": decided,
        "target": target.value,
        "champion": champion,
        "reasons": [check.model_dump() for check in checks],
    }
    ledger.append(state.ledger, entry, run)
    tags = {"decision": f"{'yes' if decided else 'no'}: {reasons}"[:480]} | ({"champion": champion} if champion else {})
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
            state.ledger,
            run,
            bool(forced),
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
    return [PolicyCheck(rule=NOT_ROLLED_BACK, passed=False, reason=reason)]


def _check_champion(uri: str, versions: ModelVersions, champion: str) -> None:
    now = lookup.find(uri, versions.name, "production")
    standing = f"{now.name}/{now.version}" if now else ""
    if standing not in (champion, f"{versions.name}/{versions.version}"):
        raise WorkRefused(
            f"promote: production is {standing or 'empty'} now, but the candidate was compared with "
            f"{champion or 'no champion'}. Run the flow again, or `tuneline evaluate RECIPE --version "
            f"{versions.version}`: only the comparison is repeated."
        )


def asked(versions: ModelVersions, questions: list[dict[str, Any]], state: State) -> PolicyCheck:
    """Load each version as a consumer would and ask it; raises WorkRefused where it does not answer."""
    from tasks.registry import versions as registered

    uri, cache = state.tracking_uri, state.root / "cache"
    pairs = [(versions.name, versions.version), (versions.adapter_name, versions.adapter_version)]
    answers = [registered.ask(uri, name, version, questions, cache) for name, version in pairs if name]
    if not any(answer.strip() for answer in answers[0]):
        raise WorkRefused(f"promote: {versions.name}/{versions.version} loads, but answers nothing to {questions[0]}.")
    same = len(answers) < 2 or answers[0] == answers[1]
    what = "It" if len(answers) < 2 else "Both versions"
    reason = f"{what} loaded outside this project and answered {len(questions)} test prompts" + (
        " alike." if same and len(answers) > 1 else "."
    )
    return PolicyCheck(rule="answers", passed=True, reason=reason)
