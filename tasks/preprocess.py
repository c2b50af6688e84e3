"""A validated dataset in, a tokenised one out: token ids, labels, lengths, and a report of what is trained."""

from pathlib import Path
from typing import TYPE_CHECKING

from tasks.artifacts import TokenizedDataset, ValidatedDataset
from tasks.bases import base_of
from tasks.data import masks
from tasks.data.dataset import load_split
from tasks.data.tokenisation import TokenisedSplit, tokenise, write_split
from tasks.digests import digest, unchanged
from tasks.file_digests import file_digest
from tasks.modeling.base_model import BaseModelFolder
from tasks.modeling.loading import stop_ids
from tasks.pages import show, shown_progress
from tasks.progress import Advance
from tasks.prompts import PromptRenderer
from tasks.recipe import PromptRecipe, Recipe
from tasks.retries import verb
from tasks.workplace import Workplace

if TYPE_CHECKING:
    from tasks.registry.tracking import MlflowRun

VERSION = 2
SPLITS = ("train", "validation")


@verb(retries=2, retry_delay_seconds=[30, 120])
def preprocess(dataset: ValidatedDataset, recipe: Recipe, place: Workplace) -> TokenizedDataset:
    """Render and tokenise every record with the base model's tokenizer, labels on the answers alone."""
    base = base_of(recipe.base, place)
    inputs = {
        "version": VERSION,
        "data": dataset.digest,
        "base": [base.digest, base.tokenizer_digest],
        "recipe": recipe.prompt,
    }
    with shown_progress(f"{recipe.name} preprocess", sum(dataset.rows[split] for split in SPLITS), "records") as meter:

        def build(folder: Path) -> TokenizedDataset:
            with unchanged(base.folder, base.digest):
                return _build(folder, dataset, base, recipe, meter)

        tokenized = place.store.make("preprocess", inputs, TokenizedDataset, build, uses=[dataset])
    place.run.once(tokenized, lambda run: _tell(run, tokenized))
    show(f"{recipe.name}-masks", tokenized.path("masks.md").read_text("utf-8"), "Which tokens are trained.")
    return tokenized


def renderer_of(folder: Path, recipe: PromptRecipe, trust_remote_code: bool) -> PromptRenderer:
    """The renderer of a model folder's tokenizer; its template is the recipe's."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    return PromptRenderer(tokenizer, recipe, stop_ids(folder))


def _build(
    folder: Path, dataset: ValidatedDataset, base: BaseModelFolder, recipe: Recipe, advance: Advance
) -> TokenizedDataset:
    renderer = renderer_of(base.folder, recipe.prompt, recipe.base.trust_remote_code)
    splits: dict[str, TokenisedSplit] = {}
    for split in SPLITS:
        examples = list(tokenise(load_split(dataset.path(f"{split}.jsonl")), renderer, advance))
        splits[split] = write_split(examples, folder / f"{split}.parquet", split, recipe.prompt.max_length)
        if split == "train":
            summary = _summary(splits[split])
            decode = renderer.tokenizer.decode
            (folder / "masks.html").write_text(masks.html(examples, decode, summary), "utf-8")
            (folder / "masks.md").write_text(masks.markdown(examples, decode, summary), "utf-8")
    renderer.tokenizer.save_pretrained(folder / "tokenizer")
    template = digest([renderer.tokenizer.chat_template, recipe.prompt.system])
    files = [file_digest(folder / f"{split}.parquet") for split in SPLITS]
    return TokenizedDataset(
        digest=digest([files, base.digest, base.tokenizer_digest, template]),
        base_digest=base.digest,
        tokenizer_digest=base.tokenizer_digest,
        template_digest=template,
        rows={name: split.rows for name, split in splits.items()},
        tokens={name: split.tokens for name, split in splits.items()},
        trained_tokens={name: split.trained_tokens for name, split in splits.items()},
        truncated={name: split.truncated for name, split in splits.items()},
        dropped={name: split.dropped for name, split in splits.items()},
        max_length=recipe.prompt.max_length,
    )


def _summary(split: TokenisedSplit) -> str:
    return (
        f"{split.rows:,} examples, {split.tokens:,} tokens, {split.trained_tokens:,} of them trained "
        f"({split.trained_tokens / max(split.tokens, 1):.0%}). {split.truncated:,} answers were cut at the longest "
        f"length, {split.dropped:,} records were left out because their prompt alone is longer."
    )


def _tell(run: "MlflowRun", tokenized: TokenizedDataset) -> None:
    from tasks.registry import tracking

    tracking.log_files(run, {"prompts": [tokenized.path("masks.html"), tokenized.path("masks.md")]})
