"""The last screen of a retraining: its nouns in; tables, answers, decision and next steps out."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from flows.cli.notices import notices
from tasks.artifacts import Estimate, EvaluationReport, PromotionDecision, StepRecord, SuiteReport, Who
from tasks.output.credentials import HIDDEN
from tasks.output.escaping import fence, markdown_text
from tasks.output.terminal import console

if TYPE_CHECKING:
    from flows.retrain import Retrained
    from tasks.registry.lookup import Version

WHO: tuple[Who, ...] = ("base", "candidate", "champion")
UNFOLDED = {"full": "nothing to fold", "adapter": "stays an adapter"}


def retrained(done: "Retrained", recipe_path: Path) -> RenderableType:
    """Everything a person wants to know after `tuneline retrain`, from the scores to what to try next."""
    return Group(
        *(scores(suite, done.report) for suite in done.report.suites.values()),
        *comparisons(done.report),
        Rule("The same test rows, two answers", align="left"),
        *answers(done.report),
        Rule("Steps", align="left"),
        steps(done),
        *(Text(f"! {line}", style="yellow") for line in notices(done)),
        Rule("Registry", align="left"),
        registry(done),
        decision(done.decision),
        next_steps(done, recipe_path),
    )


def as_markdown(screen: RenderableType, title: str) -> str:
    """The same screen as a Markdown file, 110 columns wide."""
    page = console(file=io.StringIO(), width=110, record=True, color_system=None)
    page.print(screen)
    lines = "\n".join(line.rstrip() for line in page.export_text().splitlines())
    return f"# {markdown_text(title)}\n\n{fence(lines)}\n"


def evaluated(report: EvaluationReport) -> RenderableType:
    """What `tuneline evaluate` shows: scores, comparisons, answers and the report's place."""
    place = Text.assemble(("report  ", "dim"), str(report.path("report.html")), overflow="fold")
    tables = (scores(suite, report) for suite in report.suites.values())
    return Group(*tables, *comparisons(report), *answers(report), place)


def looked_up(version: "Version", alias: str, ledger: str = "") -> Table:
    """What `tuneline lookup` shows: version, where it came from, every tag, and what the ledger knows of them."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("model", f"{version.name} v{version.version} @ {alias}")
    table.add_row("load it as", f"models:/{version.name}@{alias}")
    table.add_row("source", version.source)
    table.add_row("MLflow run", version.run_id)
    for name, value in sorted(version.tags.items()):
        table.add_row(name, escape(value))
    if ledger:
        table.add_row("ledger", escape(ledger))
    if version.description:
        table.add_row("description", escape(version.description.strip().split("\n")[0]))
    return table


def scores(suite: SuiteReport, report: EvaluationReport) -> Table:
    """Metrics by model, each mean with its interval."""
    who = [name for name in WHO if name in suite.scores]
    title = f"Suite {suite.suite}: {suite.rows} rows kept out of training, {report.confidence:.0%} intervals"
    # As narrow as it gets: three models with their intervals have to fit 80 columns.
    thin: dict[str, Any] = {"box": box.SIMPLE_HEAD, "show_edge": False, "pad_edge": False, "padding": (0, 1, 0, 0)}
    table = Table(title=title, title_justify="left", title_style="bold", **thin)
    table.add_column("metric", no_wrap=True)
    for name in who:
        table.add_column(name, justify="right", no_wrap=True)
    for metric in suite.scores["candidate"]:
        first = metric == report.primary_metric
        cells = [interval(suite.scores[name].get(metric)) for name in who]
        table.add_row(f"{metric} *" if first else metric, *cells, style="bold green" if first else "")
    table.caption = (
        f"* primary metric.{' Lower perplexity is better.' if 'perplexity' in suite.scores['candidate'] else ''}"
    )
    table.caption_justify = "left"
    return table


def interval(estimate: Estimate | None) -> str:
    """A mean with its interval.

    >>> interval(Estimate(mean=0.91, low=0.87, high=0.95, rows=150))
    '0.910 [0.870, 0.950]'
    """
    if estimate is None:
        return "–"
    digits = 3 if abs(estimate.high) < 10 else 1 if abs(estimate.high) < 1000 else 0
    return f"{estimate.mean:.{digits}f} [{estimate.low:.{digits}f}, {estimate.high:.{digits}f}]"


def comparisons(report: EvaluationReport) -> Iterator[Text]:
    """One line a model compared with, on the primary metric."""
    for suite in report.suites.values():
        for found in suite.comparisons:
            if found.metric == report.primary_metric:
                change = found.difference
                yield Text(
                    f"Candidate against {found.against}, {found.metric}: {change.mean:+.3f} "
                    f"[{change.low:+.3f}, {change.high:+.3f}], p = {found.p_value:.2g}; "
                    f"{found.wins} rows won, {found.losses} lost, {found.ties} ties."
                )


def answers(report: EvaluationReport, count: int = 3) -> Iterator[Panel]:
    """Rows of the test split with the answers of base and candidate beside each other."""
    for example in report.examples[:count]:
        both = Table.grid(expand=True, padding=(0, 2))
        both.add_column(ratio=1)
        both.add_column(ratio=1)
        both.add_row("[bold red]base[/]", "[bold green]candidate[/]")
        both.add_row(escape(short(example.get("base", ""))), escape(short(example.get("candidate", ""))))
        expected = Text.assemble(("expected: ", "dim"), short(example.get("reference", "")))
        asked = Text.assemble(("asked: ", "dim"), short(example.get("prompt", "")))
        yield Panel(Group(asked, expected, both), border_style="dim")


def short(text: str, limit: int = 240) -> str:
    """One paragraph, cut in the middle: the start says what it is, the end how it stops.

    >>> short("a" * 9, limit=5)
    'aa … aa'
    """
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else f"{flat[: limit // 2]} … {flat[-(limit // 2) :]}"


def steps(done: "Retrained") -> Table:
    """The seven steps: made or reused, how long the making took, what came out."""
    tokens = sum(done.tokenized.tokens.values())
    loss = done.weights.best_validation_loss
    parity = done.merged.parity
    rows: list[tuple[str, StepRecord, str]] = [
        ("validate", done.dataset, ", ".join(f"{count} {split}" for split, count in done.dataset.rows.items())),
        ("preprocess", done.tokenized, f"{tokens:,} tokens, {sum(done.tokenized.trained_tokens.values()):,} trained"),
        ("train", done.weights, f"{done.weights.steps} steps" + (f", validation loss {loss:.3f}" if loss else "")),
        ("evaluate", done.report, f"{sum(suite.rows for suite in done.report.suites.values())} test rows"),
        ("merge", done.merged, f"mean KL {parity.mean_kl:.1e}" if parity else UNFOLDED[done.merged.kind]),
        ("register", done.versions, f"{done.versions.name} v{done.versions.version}"),
        ("promote", done.decision, done.decision.target if done.decision.promote else "refused"),
    ]
    table = Table(show_edge=False, pad_edge=False)
    for name in ("step", "outcome"):
        table.add_column(name, no_wrap=True)
    table.add_column("seconds", justify="right", no_wrap=True)
    table.add_column("result")
    for name, record, result in rows:
        outcome = "[cyan]Reused[/]" if record.reused else "[green]made[/]"
        seconds = building_seconds(record.folder)
        if seconds is not None and record is done.report:
            seconds += done.report.asking_seconds
        table.add_row(name, outcome, "–" if seconds is None or record.reused else f"{seconds:,.1f}", result)
    return table


def building_seconds(folder: Path) -> float | None:
    """Seconds between a step folder's first file and its last, or None where it has none."""
    try:
        return (folder / "manifest.json").stat().st_mtime - (folder / "inputs.json").stat().st_mtime
    except OSError:
        return None


def registry(done: "Retrained") -> RenderableType:
    """Names, versions and aliases, and where the report lies."""
    table = Table(show_edge=False, pad_edge=False)
    for title in ("model", "version", "aliases", "load it as"):
        table.add_column(title, overflow="fold")
    versions = done.versions
    pairs = [(versions.name, versions.version), (versions.adapter_name, versions.adapter_version)]
    for name, version in (pair for pair in pairs if pair[0]):
        aliases = aliases_of(done.decision, name, version)
        address = f"models:/{name}@{aliases[0]}" if aliases else f"models:/{name}/{version}"
        table.add_row(name, str(version), ", ".join(aliases) or "–", address)
    places = Table.grid(padding=(0, 2))
    places.add_column(style="dim", no_wrap=True)
    places.add_column(overflow="fold")
    places.add_row("report", str(done.report.path("report.html")))
    places.add_row("data report", str(done.dataset.path("report.html")))
    places.add_row("mask report", str(done.tokenized.path("masks.html")))
    places.add_row("MLflow", f"{versions.tracking_uri}, run {versions.mlflow_run_id}")
    return Group(table, places)


def aliases_of(found: PromotionDecision, name: str, version: int) -> list[str]:
    """The aliases that point at a version, the one that matters most first."""
    order = ("production", "staging", "candidate", "previous")
    aliases = [alias for alias, number in found.aliases.get(name, {}).items() if number == version]
    return sorted(aliases, key=lambda alias: order.index(alias) if alias in order else len(order))


def decision(found: PromotionDecision) -> Panel:
    """Yes or no, plainly, with every reason."""
    version = f"{found.name} v{found.version}"
    stays = "STAYS IN PRODUCTION" if found.stays_in_production else "NOT PROMOTED"
    headline = f"{found.target.upper() if found.promote else stays}: {version}"
    lines = [Text(f"{'✓' if check.passed else '✗'} {check.rule}: {check.reason}") for check in found.checks]
    if found.promote and found.previous:
        lines.append(Text(f"previous is version {found.previous}; `tuneline rollback` goes back to it."))
    if not found.promote:
        lines.append(Text(f"{_what_stays(found)} The decision is kept in the ledger.", style="bold"))
    if found.basis.policy:
        report = f", report: {found.basis.report_from}" if found.basis.report_from else ""
        lines.append(Text(f"policy: {found.basis.policy}{report}", style="dim", overflow="fold"))
    color = "green" if found.promote else "yellow"
    return Panel(
        Group(*lines), title=headline, title_align="left", border_style=color, style="" if found.promote else color
    )


def _what_stays(found: PromotionDecision) -> str:
    """What is in production after a no."""
    if found.stays_in_production:
        return f"v{found.version} stays in production; decided on now, it would not have been promoted."
    production = found.aliases.get(found.name, {}).get("production")
    return "No serving alias was changed" + (f"; production stays v{production}." if production else ".")


def next_steps(done: "Retrained", recipe_path: Path) -> Panel:
    """Three commands that make sense after this outcome."""
    name, version = done.versions.name, done.versions.version
    if done.decision.promote:
        first = ("Ask the model over HTTP", serve_command(done))
        last = (
            "Change the evaluation only: every step before it is reused",
            f"tuneline retrain {recipe_path} --set evaluation.resamples=5000",
        )
    else:
        first = ("See which rows were lost", str(done.report.path("report.html")))
        force = f"tuneline promote {name} {version} --force --reason 'why the policy does not count here'"
        last = ("Promote it all the same, on record", force)
        if done.decision.stays_in_production:
            last = ("Take it out of production", f"tuneline rollback {name} --reason 'what is wrong with it'")
    second = ("Look at runs, curves, reports and versions", "make ui")
    lines: list[RenderableType] = []
    for number, (what, command) in enumerate((first, second, last), start=1):
        lines += [Text(f"{number}. {what}:"), Text(f"   {command}", style="bold cyan", overflow="fold")]
    return Panel(Group(*lines), title="Next", title_align="left", border_style="blue")


def serve_command(done: "Retrained") -> str:
    """MLflow's own server for the version that was just promoted."""
    model = f"models:/{done.versions.name}@{done.decision.target}"
    address = done.versions.tracking_uri
    # An address with credentials is only in the environment, and there it is already.
    variable = "" if HIDDEN in address else f"MLFLOW_TRACKING_URI={address} "
    return f"{variable}mlflow models serve -m {model} --env-manager local -p 5001"
