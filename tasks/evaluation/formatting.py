"""Numbers in, the words and figures of a report out; the Markdown and the HTML say the same."""

from tasks.artifacts import Comparison, Estimate, EvaluationReport, SuiteReport

LABELS = {
    "exact_match": "Exact match",
    "token_f1": "Token F1",
    "rouge_l": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
    "stop_rate": "Stop rate",
    "answer_tokens": "Answer tokens",
    "perplexity": "Perplexity",
}


def label(metric: str) -> str:
    """A metric's name as a reader knows it."""
    return LABELS.get(metric, metric)


def number(metric: str, value: float) -> str:
    """A value with as many digits as it deserves.

    >>> number("exact_match", 0.9132), number("answer_tokens", 31.24), number("perplexity", 12345.6)
    ('0.913', '31.2', '1.23e+04')
    """
    if metric == "answer_tokens":
        return f"{value:.1f}"
    if metric == "perplexity":
        return f"{value:.2f}" if value < 1000 else f"{value:.2e}"
    return f"{value:.3f}"


def interval(metric: str, estimate: Estimate) -> str:
    """An estimate's interval in brackets."""
    return f"[{number(metric, estimate.low)}, {number(metric, estimate.high)}]"


def p_value(value: float) -> str:
    """A p-value, not more exact than it is.

    >>> p_value(0.0004), p_value(0.0312)
    ('< 0.001', '0.031')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def outcome(comparison: Comparison) -> str:
    """`better`, `worse`, or `no clear difference` where the interval holds zero."""
    if comparison.difference.low > 0:
        return "better"
    return "worse" if comparison.difference.high < 0 else "no clear difference"


def primary(report: EvaluationReport, suite: SuiteReport) -> list[Comparison]:
    """The comparisons by the metric that promotion looks at first."""
    return [found for found in suite.comparisons if found.metric == report.primary_metric]


def verdict(report: EvaluationReport, suite: SuiteReport) -> str:
    """One sentence: the primary metric of every model, with intervals."""
    metric = report.primary_metric
    told = [
        f"{who} {found[metric].mean:.2f} [{found[metric].low:.2f}, {found[metric].high:.2f}]"
        for who in ("candidate", "base", "champion")
        if (found := suite.scores.get(who))
    ]
    return f"{label(metric)} on {suite.rows} rows: " + " and ".join(told).replace(" and ", " against ", 1)


def reading(comparison: Comparison) -> str:
    """How the candidate compares with one other model, with the size, the doubt and the rows behind it."""
    found, how = comparison.difference, outcome(comparison)
    link = "from" if how == "no clear difference" else "than"
    return (
        f"{how} {link} {comparison.against}: {found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}], "
        f"p {p_value(comparison.p_value)}; {comparison.wins} rows better, {comparison.losses} worse, "
        f"{comparison.ties} equal"
    )
