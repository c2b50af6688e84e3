"""A report in, what it says against itself out: for a report that was not made here."""

from collections.abc import Iterator

from tasks.artifacts import Comparison, EvaluationReport, SuiteReport

ROUNDING = 1e-6


def contradictions(report: EvaluationReport) -> list[str]:
    """Every place where the numbers of a report cannot all be true; empty for a report that `evaluate` wrote."""
    faults = [] if report.suites else ["it has no suite"]
    for suite in report.suites.values():
        faults += [f"suite {suite.suite}: {fault}" for fault in _of_suite(suite, report)]
    return faults


def _of_suite(suite: SuiteReport, report: EvaluationReport) -> Iterator[str]:
    wanted = {"base", "candidate"} | ({"champion"} if report.champion else set())
    if set(suite.scores) != wanted:
        yield f"it scores {', '.join(sorted(suite.scores)) or 'nobody'}, and not {', '.join(sorted(wanted))}"
        return
    if report.primary_metric not in suite.scores["candidate"]:
        yield f"the primary metric, {report.primary_metric}, is not measured"
    for who, scores in suite.scores.items():
        for metric, estimate in scores.items():
            if not (1 <= estimate.rows <= suite.rows and estimate.low <= estimate.high):
                yield f"{metric} of the {who} is of {estimate.rows} rows, the suite has {suite.rows}"
    for comparison in suite.comparisons:
        if fault := _of_comparison(comparison, suite):
            yield f"{comparison.metric} against the {comparison.against}: {fault}"


def _of_comparison(comparison: Comparison, suite: SuiteReport) -> str:
    """Each row is won, lost or tied, and the mean of the differences is the difference of the means."""
    difference = comparison.difference
    counted = comparison.wins + comparison.losses + comparison.ties
    if not counted == difference.rows == suite.rows:
        return f"{counted} rows counted, {difference.rows} compared, {suite.rows} in the suite"
    means = [suite.scores.get(who, {}).get(comparison.metric) for who in ("candidate", comparison.against)]
    if means[0] is None or means[1] is None:
        return "compared, and not scored"
    if abs(means[0].mean - means[1].mean - difference.mean) > ROUNDING:
        return f"the means differ by {means[0].mean - means[1].mean:+.4f}, the report says {difference.mean:+.4f}"
    if difference.low > difference.high or (not comparison.wins and difference.low > 0):
        return f"an interval from {difference.low:+.4f} to {difference.high:+.4f} with {comparison.wins} rows won"
    return ""
