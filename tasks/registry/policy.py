"""Decide whether a candidate may be promoted: a policy, a report and a parity in, one reasoned check a rule out.

Pure: nothing is asked of a registry and nothing is moved.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tasks.artifacts import Comparison, EvaluationReport, Parity, PolicyCheck, SliceScores, SuiteReport, Who
from tasks.errors import InvalidRecipe

PRIMARY = "primary"
NOT_SCORES = ("perplexity", "answer_tokens")


class Rule(BaseModel):
    """A part of the policy; frozen and closed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Better(Rule):
    """The paired difference is above zero."""

    metric: str = Field(PRIMARY, description="A metric, or `primary` for the recipe's primary metric.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Of the paired interval.")


class NotWorse(Better):
    """The paired difference is above minus `margin`."""

    margin: float = Field(0.02, ge=0, le=1, description="Points of the metric.")


class Slices(Rule):
    """No slice loses more than `max_drop`."""

    metric: str = Field(PRIMARY, description="A metric, or `primary`.")
    max_drop: float = Field(0.10, ge=0, le=1, description="Points of the metric.")
    min_rows: int = Field(30, ge=1, description="Rows below which a slice is not looked at.")


class ParityRule(Rule):
    """The merged model answers as base plus adapter does."""

    min_top1_agreement: float = Field(0.99, ge=0, le=1, description="Share of equal most likely tokens.")
    min_answer_agreement: float = Field(0.90, ge=0, le=1, description="Share of equal greedy answers.")


class PromotionPolicy(Rule):
    """The rules of `mlflow/promotion_policy.yaml`; a rule that is None is not applied."""

    suite: str = Field("test", min_length=1, description="Suite whose scores decide.")
    min_rows: int = Field(1, ge=1, description="Rows the suite must have.")
    minimum_scores: dict[str, float] = Field({}, description="Least mean score a metric.")
    better_than_base: Better | None = None
    not_worse_than_champion: NotWorse | None = None
    better_than_champion: Better | None = None
    slices: Slices | None = None
    parity: ParityRule | None = None

    @field_validator("minimum_scores")
    @classmethod
    def _higher_is_better(cls, scores: dict[str, float]) -> dict[str, float]:
        for metric, least in scores.items():
            if metric in NOT_SCORES:
                raise ValueError(f"{metric} is no score: a higher one is not better")
            if not 0 <= least <= 1:
                raise ValueError(f"{metric}: {least} is not between 0 and 1")
        return scores


def load(path: Path) -> PromotionPolicy:
    """The policy of a YAML file. Raises InvalidRecipe with every fault in one message: file, key, what was found."""
    import yaml

    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as fault:
        raise InvalidRecipe(
            f"{path}: the promotion policy cannot be read ({fault.strerror}); name one that exists."
        ) from fault
    except (yaml.YAMLError, UnicodeDecodeError) as fault:
        raise InvalidRecipe(f"{path}: this is not YAML: {' '.join(str(fault).split())}") from fault
    if not isinstance(content, dict):
        raise InvalidRecipe(
            f"{path}: found {type(content).__name__}, expected keys such as `suite` and `minimum_scores`."
        )
    try:
        return PromotionPolicy.model_validate(content)
    except ValidationError as fault:
        raise InvalidRecipe("\n".join(_fault(path, error) for error in fault.errors())) from None


def _fault(path: Path, error: Any) -> str:
    key = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        rules: dict[str, type[Rule]] = {"slices": Slices, "parity": ParityRule, "not_worse_than_champion": NotWorse}
        owner: type[Rule] = PromotionPolicy if len(error["loc"]) == 1 else rules.get(error["loc"][0], Better)
        return f"{path}: {key}: no such key; allowed are {', '.join(owner.model_fields)}."
    return f"{path}: {key}: found {error['input']!r}: {error['msg']}."


def decide(policy: PromotionPolicy, report: EvaluationReport, parity: Parity | None) -> list[PolicyCheck]:
    """Every rule applied, in the policy's order; the candidate may be promoted when all of them passed.

    A rule whose numbers are missing from the report fails and says so. `parity` is None where nothing was folded.
    """
    suite = report.suites.get(policy.suite)
    if suite is None:
        found = ", ".join(sorted(report.suites)) or "none"
        return [_check("suite", False, f"The report has no suite {policy.suite!r}; it has: {found}.")]
    checks = [_gain(report), _rows(policy, suite), *_minimums(policy, suite)]
    if policy.better_than_base:
        checks.append(_difference("better_than_base", policy.better_than_base, report, suite, "base", margin=None))
    if rule := policy.not_worse_than_champion:
        checks.append(_difference("not_worse_than_champion", rule, report, suite, "champion", margin=rule.margin))
    if policy.better_than_champion:
        checks.append(
            _difference("better_than_champion", policy.better_than_champion, report, suite, "champion", margin=None)
        )
    if policy.slices:
        checks.append(_slices(policy.slices, report, suite))
    if policy.parity:
        checks.append(_parity(policy.parity, parity))
    return checks


def _check(rule: str, passed: bool, reason: str) -> PolicyCheck:
    return PolicyCheck(rule=rule, passed=passed, reason=reason)


def _gain(report: EvaluationReport) -> PolicyCheck:
    rule = "something_to_gain"
    if not report.champion:
        return _check(rule, True, "There is no champion yet.")
    if report.candidate_digest == report.champion_digest:
        return _check(rule, False, f"The candidate has the weights of {report.champion}: there is nothing to gain.")
    return _check(rule, True, f"The candidate's weights differ from those of {report.champion}.")


def _rows(policy: PromotionPolicy, suite: SuiteReport) -> PolicyCheck:
    enough = suite.rows >= policy.min_rows
    return _check("min_rows", enough, f"{suite.suite}: {suite.rows} rows, at least {policy.min_rows} are asked for.")


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
        yield _check(rule, mean >= least, f"{suite.suite}/{metric} is {mean:.3f}, at least {least:.3f} is asked for.")


def _difference(
    rule: str, asked: Better, report: EvaluationReport, suite: SuiteReport, against: Who, margin: float | None
) -> PolicyCheck:
    """Decided on the lower end of the paired interval: above zero, or with a margin not below minus the margin."""
    if against == "champion" and not report.champion:
        return _check(rule, True, "There is no champion yet.")
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


def _parity(asked: ParityRule, parity: Parity | None) -> PolicyCheck:
    if parity is None:
        return _check("parity", True, "Nothing was folded: the version carries the trained weights as they are.")
    passed = parity.top1_agreement >= asked.min_top1_agreement and parity.answer_agreement >= asked.min_answer_agreement
    return _check(
        "parity",
        passed,
        f"Merged against base plus adapter: {parity.top1_agreement:.1%} equal most likely tokens (at least "
        f"{asked.min_top1_agreement:.1%}), {parity.answer_agreement:.1%} equal answers (at least "
        f"{asked.min_answer_agreement:.1%}), mean KL {parity.mean_kl:.2g}.",
    )
