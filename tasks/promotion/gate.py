"""Decide whether a candidate may be promoted: a policy, a report and a parity in, one reasoned check per rule out.

Pure: nothing is asked of a registry and nothing is moved.
"""

from collections.abc import Iterator
from typing import NamedTuple

from tasks.artifacts import Comparison, EvaluationReport, Parity, PolicyCheck, SliceScores, SuiteReport, Who
from tasks.promotion.policy import PRIMARY, Better, NotWorse, ParityRule, PromotionPolicy, Slices

UNFOLDED = {
    "full": "Nothing was folded: the version is the trained weights as they are.",
    "adapter": "Nothing was folded: the version is the adapter as it was trained, on its base.",
}


class Standing(NamedTuple):
    """What is in production when a candidate is decided on."""

    version: str = ""
    """Registry name and version; empty where nothing is in production."""
    same_weights: bool = False
    """It has the candidate's weights: it is the candidate, or differs from it in serving or description alone."""


NOTHING = Standing()
NOTHING_COMPARED = (
    "Nothing was compared: there is no champion, and the policy has no rule for a first version; "
    "add better_than_base or minimum_scores."
)


def decide(
    policy: PromotionPolicy,
    report: EvaluationReport,
    parity: Parity | None,
    kind: str,
    standing: Standing = NOTHING,
) -> list[PolicyCheck]:
    """Every rule applied, in the policy's order; the candidate may be promoted when all of them passed.

    A rule whose numbers are missing from the report fails and says so. `kind` is the version's (merged, full or
    adapter), empty where that is not known; `parity` is None where nothing was folded, or where it is not known.
    """
    suite = report.suites.get(policy.suite)
    if suite is None:
        found = ", ".join(sorted(report.suites)) or "none"
        return [_check("suite", False, f"The report has no suite {policy.suite!r}; it has: {found}.")]
    checks = [_gain(report, standing), _rows(policy, suite), *_minimums(policy, suite)]
    if policy.better_than_base:
        checks.append(_difference("better_than_base", policy.better_than_base, report, suite, "base"))
    for name, rule in (
        ("not_worse_than_champion", policy.not_worse_than_champion),
        ("better_than_champion", policy.better_than_champion),
    ):
        if rule and report.champion:
            checks.append(_difference(name, rule, report, suite, "champion"))
        elif rule:
            checks.append(_check(name, True, _no_champion(standing)))
    anything = report.champion or policy.better_than_base or any(policy.minimum_scores.values())
    if not (anything or standing.same_weights):
        checks.append(_check("compared", False, NOTHING_COMPARED))
    if policy.slices:
        checks.append(_slices(policy.slices, report, suite))
    if policy.parity:
        checks.append(_parity(policy.parity, parity, kind))
    return checks


def _check(rule: str, passed: bool, reason: str) -> PolicyCheck:
    return PolicyCheck(rule=rule, passed=passed, reason=reason)


def _gain(report: EvaluationReport, standing: Standing) -> PolicyCheck:
    rule = "something_to_gain"
    if standing.same_weights:
        against = f"with {report.champion}" if report.champion else "with no champion"
        reason = f"{standing.version} is in production with the same weights and prompt, so no gain is required; "
        return _check(rule, True, f"{reason}the candidate is compared as that was, {against}.")
    if not report.champion:
        return _check(rule, True, _no_champion(standing))
    if report.candidate_digest == report.champion_digest:
        return _check(rule, False, f"The candidate has the weights of {report.champion}: there is nothing to gain.")
    return _check(rule, True, f"The candidate's weights differ from those of {report.champion}.")


def _no_champion(standing: Standing) -> str:
    if standing.same_weights:
        return f"{standing.version} is in production with the same weights, which were compared with no champion."
    if standing.version:
        return f"The report compares with no champion; {standing.version} went into production since."
    return "There is no champion yet."


def _rows(policy: PromotionPolicy, suite: SuiteReport) -> PolicyCheck:
    enough = suite.rows >= policy.min_rows
    return _check("min_rows", enough, f"{suite.suite}: {suite.rows} rows (minimum {policy.min_rows}).")


def _minimums(policy: PromotionPolicy, suite: SuiteReport) -> Iterator[PolicyCheck]:
    scores = suite.scores.get("candidate", {})
    for metric, least in policy.minimum_scores.items():
        rule = f"minimum_scores.{metric}"
        if metric not in scores:
            yield _check(
                rule, False, f"{metric} was not measured on {suite.suite}; measured: {', '.join(sorted(scores))}."
            )
            continue
        mean = scores[metric].mean
        yield _check(rule, mean >= least, f"{suite.suite}/{metric} is {mean:.3f} (minimum {least:.3f}).")


def _difference(rule: str, asked: Better, report: EvaluationReport, suite: SuiteReport, against: Who) -> PolicyCheck:
    """Decided on the lower end of the paired interval: above zero, or with a margin not below minus the margin."""
    margin = asked.margin if isinstance(asked, NotWorse) else None
    found = _comparison(suite, _metric(asked.metric, report), against)
    if found is None:
        metric = _metric(asked.metric, report)
        return _check(
            rule, False, f"{suite.suite}/{metric} was not compared with the {against}; evaluate again with it."
        )
    if report.confidence < asked.confidence:
        held, wanted = 100 * report.confidence, 100 * asked.confidence
        reason = f"The intervals hold at {held:g}%, the policy asks for {wanted:g}%: raise evaluation.confidence."
        return _check(rule, False, reason)
    difference = found.difference
    passed = difference.low > 0 if margin is None else difference.low >= -margin
    bound = "more than 0" if margin is None else f"{-margin:+.3f} or more"
    return _check(
        rule,
        passed,
        f"{suite.suite}/{found.metric} against the {against}: {difference.mean:+.3f}, at {100 * report.confidence:g}% "
        f"between {difference.low:+.3f} and {difference.high:+.3f} on {difference.rows} rows "
        f"({found.wins} better, {found.losses} worse); the lower end must be {bound}.",
    )


def _metric(name: str, report: EvaluationReport) -> str:
    return report.primary_metric if name == PRIMARY else name


def _comparison(suite: SuiteReport, metric: str, against: Who) -> Comparison | None:
    return next((each for each in suite.comparisons if (each.metric, each.against) == (metric, against)), None)


def _slices(asked: Slices, report: EvaluationReport, suite: SuiteReport) -> PolicyCheck:
    metric = _metric(asked.metric, report)
    against: Who = "champion" if report.champion else "base"
    looked_at = [each for each in suite.slices if each.rows >= asked.min_rows]
    if not looked_at:
        return _check("slices", True, f"No slice has {asked.min_rows} rows, so none is looked at.")
    drops = [(drop, each) for each in looked_at if (drop := _drop(each, metric, against)) is not None]
    if len(drops) < len(looked_at):
        return _check(
            "slices", False, f"{len(looked_at) - len(drops)} slices lack {metric} of candidate and {against}."
        )
    lost = [
        f"{each.column}={each.value} ({each.rows} rows): {-drop:+.3f}" for drop, each in drops if drop > asked.max_drop
    ]
    if lost:
        return _check(
            "slices", False, f"{metric} against the {against} fell by more than {asked.max_drop}: {'; '.join(lost)}."
        )
    worst, where = max(drops, key=lambda each: each[0])
    return _check(
        "slices",
        True,
        f"{len(drops)} slices; {metric} against the {against} is worst on {where.column}={where.value}: {-worst:+.3f}, "
        f"down to {-asked.max_drop:+.3f} is allowed.",
    )


def _drop(each: SliceScores, metric: str, against: Who) -> float | None:
    before, now = each.scores.get(against, {}).get(metric), each.scores.get("candidate", {}).get(metric)
    return before.mean - now.mean if before and now else None


def _parity(asked: ParityRule, parity: Parity | None, kind: str) -> PolicyCheck:
    if parity is None and kind in UNFOLDED:
        return _check("parity", True, UNFOLDED[kind])
    if parity is None:
        what = "The version is a merged model" if kind == "merged" else "Whether the version was merged is not known"
        return _check("parity", False, f"{what}, and no parity is on record: run `tuneline retrain` on its recipe.")
    passed = parity.top1_agreement >= asked.min_top1_agreement and parity.answer_agreement >= asked.min_answer_agreement
    return _check(
        "parity",
        passed,
        f"Merged against base plus adapter: {parity.top1_agreement:.1%} equal most likely tokens (at least "
        f"{asked.min_top1_agreement:.1%}), {parity.answer_agreement:.1%} equal answers (at least "
        f"{asked.min_answer_agreement:.1%}), mean KL {parity.mean_kl:.2g}.",
    )
