"""Weights and a test split in, a report out: base, candidate and champion on the same rows."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.answers import EvaluatedModel, evaluated_base, evaluated_version, generate_answers, read_answers, suite_of
from tasks.artifacts import EvaluationReport, ModelAnswers, TokenizedDataset, TrainedWeights, ValidatedDataset, Who
from tasks.errors import InvalidBaseModel
from tasks.evaluation import comparison, report, scoring
from tasks.evaluation.suites import Answer, Suite
from tasks.files.digests import digest, holds
from tasks.models import RegisteredModel, champion_of, unchanged_base, version_of
from tasks.orchestration import show, shown_progress, step
from tasks.recipe.stages import MetricName, Recipe
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from tasks.registry.runs import MlflowRun

VERSION = 2
SUITE = "test"
PRIMARY_ORDER: tuple[Who, ...] = ("base", "candidate", "champion")


@step(retries=2, retry_delay_seconds=[10, 60])
def evaluate(
    weights: TrainedWeights,
    dataset: ValidatedDataset,
    tokenized: TokenizedDataset,
    recipe: Recipe,
    workspace: Workspace,
) -> EvaluationReport:
    """Ask base, candidate and champion the same rows, and compare their answers."""
    base = unchanged_base(recipe.base, tokenized, workspace)
    plain = evaluated_base(base.folder, tokenized, recipe.prompt.system, recipe.base.trust_remote_code)
    candidate = EvaluatedModel(
        "candidate",
        weights.digest,
        base.folder,
        base.digest,
        weights.path("weights"),
        weights.path("weights"),
        tokenized.template_digest,
        recipe.prompt.system,
        recipe.base.trust_remote_code,
        (weights,),
    )
    trust = recipe.base.trust_remote_code
    champion = champion_of(recipe.name, weights.digest, workspace, trust)
    models = [plain, candidate, *([_registered("champion", champion, trust)] if champion else [])]
    return report_on(models, dataset, champion, recipe, workspace)


@step(retries=2, retry_delay_seconds=[10, 60])
def evaluate_registered(
    version: int, dataset: ValidatedDataset, tokenized: TokenizedDataset, recipe: Recipe, workspace: Workspace
) -> EvaluationReport:
    """Ask a registered version, its base and the version in production the same rows, and compare their answers."""
    base = unchanged_base(recipe.base, tokenized, workspace)
    trust = recipe.base.trust_remote_code
    plain = evaluated_base(base.folder, tokenized, recipe.prompt.system, trust)
    asked = version_of(recipe.name, version, workspace, trust)
    if not holds(base.folder, asked.base):
        raise InvalidBaseModel(
            f"base.model: {recipe.base.model} has the digest {base.digest}, but {asked.label} was trained from "
            f"{asked.base}; name that base in the recipe."
        )
    champion = champion_of(recipe.name, asked.weights, workspace, trust)
    standing = [_registered("champion", champion, trust)] if champion else []
    models = [plain, _registered("candidate", asked, trust), *standing]
    return report_on(models, dataset, champion, recipe, workspace)


def _registered(who: Who, model: RegisteredModel, trust_remote_code: bool) -> EvaluatedModel:
    return evaluated_version(who, model.folder, model.digest, model.base_folder, trust_remote_code)


def report_on(
    models: list[EvaluatedModel],
    dataset: ValidatedDataset,
    champion: RegisteredModel | None,
    recipe: Recipe,
    workspace: Workspace,
) -> EvaluationReport:
    """Answers of every model, scored and compared; the report as files, Prefect artifact and MLflow metrics."""
    suite = suite_of(dataset.path("test.jsonl"), SUITE, recipe.evaluation.limit)
    rows_digest = digest([[row.id, row.reference] for row in suite.rows])
    scoring.check_rows(suite)
    given = {}
    for asked in models:
        with shown_progress(f"{recipe.name} evaluate {asked.who}", len(suite.rows), "rows") as meter:
            given[asked.who] = generate_answers(asked, suite, rows_digest, recipe.evaluation, workspace.store, meter)
    inputs = {
        "version": VERSION,
        "answers": {who: [answers.digest, answers.model_digest] for who, answers in given.items()},
        "rows": [rows_digest, [row.columns for row in suite.rows]],
        "recipe": recipe.evaluation,
        "slices": recipe.data.slice_columns,
        "champion": champion.label if champion else "",
        "name": recipe.name,
        "seed": recipe.seed,
    }
    made = workspace.store.make(
        "evaluate",
        inputs,
        EvaluationReport,
        lambda folder: _build(folder, suite, given, champion, recipe),
        uses=[dataset, *given.values()],
    )
    workspace.run.log_once(made, lambda run: _log_to_mlflow(run, made))
    show(f"{recipe.name}-evaluation", made.path("report.md").read_text("utf-8"), "Base, candidate and champion.")
    return made


def _build(
    folder: Path, suite: Suite, given: dict[Who, ModelAnswers], champion: RegisteredModel | None, recipe: Recipe
) -> EvaluationReport:
    settings, columns = recipe.evaluation, recipe.data.slice_columns
    answers = {who: read_answers(each) for who, each in given.items()}
    scores = {who: _scores(suite, known, settings.metrics) for who, known in answers.items()}
    primary = settings.primary_metric.value
    made = EvaluationReport(
        digest="",
        primary_metric=primary,
        confidence=settings.confidence,
        suites={SUITE: comparison.report_suite(suite, scores, settings, columns, recipe.seed)},
        candidate_digest=given["candidate"].model_digest,
        base_digest=given["base"].model_digest,
        champion=champion.label if champion else "",
        champion_digest=champion.weights if champion else "",
        examples=report.examples(suite, answers, scores, primary, columns),
        asking_seconds=sum(each.seconds for each in given.values() if not each.reused),
    )
    made = made.model_copy(update={"digest": report.report_digest(made)})
    report.write_report(folder, made, {SUITE: suite}, {SUITE: answers}, {SUITE: scores}, f"{recipe.name}: evaluation")
    return made


def _scores(suite: Suite, known: list[Answer], metrics: list[MetricName]) -> scoring.SuiteScores:
    return scoring.score(suite, lambda _: known, metrics)


def _log_to_mlflow(run: "MlflowRun", made: EvaluationReport) -> None:
    """Metrics `<suite>/<metric>` of the candidate, `base/…` and `champion/…` of the others; the report; the rows."""
    from tasks.registry import runs

    # When the report was made, so that a crash after the telling does not double its points.
    now = made.path("manifest.json").stat().st_mtime_ns // 1_000_000
    points = [
        runs.Point(f"{'' if who == 'candidate' else who + '/'}{name}/{metric}", estimate.mean, 0, now)
        for name, suite in made.suites.items()
        for who, scores in suite.scores.items()
        for metric, estimate in scores.items()
    ]
    runs.log_points(run, points)
    runs.log_files(run, {"evaluation": [made.path(f"report.{kind}") for kind in ("html", "md", "json")]})
    runs.log_rows(run, made.path("rows.parquet"), "evaluation")
