"""An adapter in, a merged model with measured parity out; full weights are handed on as they are."""

import gc
import os
import shutil
from pathlib import Path

from tasks.artifacts import MergedModel, Parity, TokenizedDataset, TrainedWeights, ValidatedDataset
from tasks.asking import suite_of
from tasks.bases import same_base
from tasks.modeling import merging
from tasks.modeling.base_model import BaseModelFolder
from tasks.modeling.loading import load_model
from tasks.pages import shown_progress
from tasks.preprocess import renderer_of
from tasks.progress import Advance
from tasks.prompts import PromptRenderer
from tasks.recipe import PromptRecipe, Recipe
from tasks.retries import verb
from tasks.store import digest, weights_digest
from tasks.workplace import Workplace

VERSION = 1


@verb(retries=1, retry_delay_seconds=[10])
def merge(
    weights: TrainedWeights, dataset: ValidatedDataset, tokenized: TokenizedDataset, recipe: Recipe, place: Workplace
) -> MergedModel:
    """Fold the adapter into the full-precision base and prove that the merged model answers as it did."""
    base = same_base(recipe.base, tokenized, place)
    inputs = {
        "version": VERSION,
        "weights": weights.digest,
        "data": dataset.digest,
        "recipe": recipe.merging,
        "max_new_tokens": recipe.evaluation.max_new_tokens,
    }
    units = 2 * recipe.merging.prompts if weights.kind == "adapter" else 1
    with shown_progress(f"{recipe.name} merge", units, "answers") as meter:
        return place.store.make(
            "merge", inputs, MergedModel, lambda folder: _build(folder, weights, base, dataset, recipe, meter)
        )


def _build(
    folder: Path,
    weights: TrainedWeights,
    base: BaseModelFolder,
    dataset: ValidatedDataset,
    recipe: Recipe,
    advance: Advance,
) -> MergedModel:
    target = folder / "model"
    if weights.kind == "full":
        # The same bytes under another name: a copy only where the file system has no links.
        shutil.copytree(weights.path("weights"), target, copy_function=_link)
        parity = None
    else:
        parity = _merge(target, weights, base, dataset, recipe, advance)
        merging.check(parity, recipe.merging)
    model_digest = weights_digest(target)
    return MergedModel(
        digest=digest([model_digest, weights.digest]),
        kind="full" if weights.kind == "full" else "merged",
        model_digest=model_digest,
        parity=parity,
    )


def _link(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _merge(
    target: Path,
    weights: TrainedWeights,
    base: BaseModelFolder,
    dataset: ValidatedDataset,
    recipe: Recipe,
    advance: Advance,
) -> Parity:
    """Measure the adapter, merge, and measure the merged model as it was loaded again from its files."""
    renderer = renderer_of(weights.path("weights"), PromptRecipe(system=recipe.prompt.system, max_length=1_000_000))
    renderer.stop_ids |= renderer_of(base.folder, recipe.prompt).stop_ids
    prompts = _prompts(renderer, dataset, recipe)
    settings = (renderer.stop_ids, recipe.evaluation.max_new_tokens, recipe.evaluation.batch_size, advance)
    model = load_model(base.folder, weights.path("weights"), base.digest, recipe.base.trust_remote_code)
    answers, sequences = merging.answers_and_sequences(model, prompts, *settings)
    before = merging.distributions(model, prompts, sequences)
    merging.merge(model, weights.path("weights"), target)
    del model
    gc.collect()
    again = load_model(target, target, weights_digest(target), recipe.base.trust_remote_code)
    other_answers, _ = merging.answers_and_sequences(again, prompts, *settings)
    after = merging.distributions(again, prompts, sequences)
    return merging.measure(before, after, answers, other_answers)


def _prompts(renderer: PromptRenderer, dataset: ValidatedDataset, recipe: Recipe) -> list[list[int]]:
    """Prompts of the validation split, or of the test split where there is none."""
    split = "validation" if dataset.rows["validation"] else "test"
    suite = suite_of(dataset.path(f"{split}.jsonl"), split, recipe.merging.prompts)
    return [renderer.prompt_ids(row.messages) for row in suite.rows]
