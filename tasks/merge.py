"""An adapter in, a merged model with measured parity out; what cannot be folded is handed on as it is."""

import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.answers import suite_of
from tasks.artifacts import MergedModel, TokenizedDataset, TrainedWeights, ValidatedDataset
from tasks.evaluation import scoring
from tasks.evaluation.suites import Answer, Suite
from tasks.files.digests import digest, model_digest, unchanged
from tasks.modeling import merging
from tasks.modeling.base_model import BaseModelFolder
from tasks.models import unchanged_base
from tasks.orchestration import show, shown_progress, step
from tasks.prompts import PromptRenderer, renderer_of
from tasks.recipe.stages import PromptRecipe, Recipe
from tasks.registry.merge_table import markdown
from tasks.steps.progress import Advance
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from tasks.registry.runs import MlflowRun

VERSION = 3
TABLE = "candidates.parquet"
log = logging.getLogger("tuneline")


@step(retries=1, retry_delay_seconds=[10])
def merge(
    weights: TrainedWeights,
    dataset: ValidatedDataset,
    tokenized: TokenizedDataset,
    recipe: Recipe,
    workspace: Workspace,
) -> MergedModel:
    """Fold the adapter into its base by the rule that keeps its answers best, and prove that it does."""
    base = unchanged_base(recipe.base, tokenized, workspace)
    inputs = {
        "version": VERSION,
        "weights": weights.digest,
        "data": dataset.digest,
        "recipe": recipe.merging,
        "max_new_tokens": recipe.evaluation.max_new_tokens,
        "metric": recipe.evaluation.primary_metric,
    }
    adapter = merging.BoundAdapter(weights.path("weights"), base.folder, base.digest, recipe.base.trust_remote_code)
    folded = weights.kind == "adapter" and not weights.not_merged
    units = recipe.merging.prompts * (1 + len(adapter.rules)) if folded else 1
    with shown_progress(f"{recipe.name} merge", units, "answers") as meter:

        def build(folder: Path) -> MergedModel:
            if not folded:
                return _as_it_is(folder, weights, weights.not_merged)
            with unchanged(base.folder, base.digest):
                return _merged(folder, weights, adapter, questions(weights, base, dataset, recipe, meter), recipe)

        made = workspace.store.make("merge", inputs, MergedModel, build, uses=[weights, dataset])
    if made.candidates:
        workspace.run.log_once(made, lambda run: _log_to_mlflow(run, made))
        show(f"{recipe.name}-merge", f"# Merge\n\n{markdown(made)}\n", "Ways of folding the adapter, measured.")
    return made


def _as_it_is(folder: Path, weights: TrainedWeights, reason: str) -> MergedModel:
    """The same bytes under another name: a copy only where the file system has no links."""
    target = folder / "model"
    shutil.copytree(weights.path("weights"), target, copy_function=_link)
    content = model_digest(target)
    return MergedModel(
        digest=digest([content, weights.digest]),
        kind=weights.kind,
        model_digest=content,
        parity=None,
        reason=reason,
    )


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _merged(
    folder: Path,
    weights: TrainedWeights,
    adapter: merging.BoundAdapter,
    asked: merging.Questions,
    recipe: Recipe,
) -> MergedModel:
    target = folder / "model"
    merge = merging.merge_best(adapter, asked, recipe.merging, target)
    best = merge.candidates[0]
    if merge.broken:
        reason = f"folded, it answers differently (nearest rule: {best.rule}): {'; '.join(merge.broken)}"
        log.warning("merge: the adapter stays an adapter, on the base it was trained on: %s", reason)
        made = _as_it_is(folder, weights, reason)
    else:
        content = model_digest(target)
        made = MergedModel(
            digest=digest([content, weights.digest]),
            kind="merged",
            model_digest=content,
            parity=best.parity,
            rule=best.rule,
        )
    measured = {
        "candidates": merge.candidates,
        "metric": recipe.evaluation.primary_metric.value,
        "adapter_score": merge.adapter_score,
    }
    made = made.model_copy(update=measured)
    parquet(made, folder / TABLE)
    return made


def questions(
    weights: TrainedWeights, base: BaseModelFolder, dataset: ValidatedDataset, recipe: Recipe, advance: Advance
) -> merging.Questions:
    """Prompts of the validation split, or of the test split where there is none, and the metric on their answers."""
    split = "validation" if dataset.rows["validation"] else "test"
    suite = suite_of(dataset.path(f"{split}.jsonl"), split, recipe.merging.prompts)
    trust = recipe.base.trust_remote_code
    prompt = PromptRecipe(system=recipe.prompt.system, max_length=1_000_000)
    renderer = renderer_of(weights.path("weights"), prompt, trust)
    renderer.stop_ids |= renderer_of(base.folder, recipe.prompt, trust).stop_ids
    return merging.Questions(
        prompts=[renderer.prompt_ids(row.messages) for row in suite.rows],
        stop_ids=renderer.stop_ids,
        max_new_tokens=recipe.evaluation.max_new_tokens,
        batch_size=recipe.evaluation.batch_size,
        score=lambda answers: _score(answers, suite, renderer, recipe),
        advance=advance,
    )


def _score(answers: Sequence[Sequence[int]], suite: Suite, renderer: PromptRenderer, recipe: Recipe) -> float:
    texts = [renderer.tokenizer.decode(ids, skip_special_tokens=True) for ids in answers]
    given = [Answer(text=text, tokens=len(ids), stopped=True) for text, ids in zip(texts, answers, strict=True)]
    metric = recipe.evaluation.primary_metric
    return float(scoring.score(suite, lambda _: given, [metric]).rows[metric.value].mean())


def _log_to_mlflow(run: "MlflowRun", made: MergedModel) -> None:
    """Metrics `merge/<rule>/<measure>` of every candidate, `merge/adapter/…` of base plus adapter, and the table."""
    from tasks.registry import runs

    now = made.path("manifest.json").stat().st_mtime_ns // 1_000_000
    measures = {f"adapter/{made.metric}": made.adapter_score or 0.0}
    for each in made.candidates:
        found = {**each.parity.model_dump(exclude={"prompts", "tokens"}), made.metric: each.score}
        measures |= {f"{each.rule}/{name}": value for name, value in found.items()}
    runs.log_points(run, [runs.Point(f"merge/{name}", value, 0, now) for name, value in measures.items()])
    runs.log_rows(run, made.path(TABLE), "merge")


def parquet(merged: MergedModel, path: Path) -> None:
    """Write the candidates, a row a rule."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"rule": each.rule, "saved": each.saved, **each.parity.model_dump(), merged.metric: each.score}
        for each in merged.candidates
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
