"""A validated dataset in, a tokenised one out: token ids, labels, lengths, and a report of what is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.artifacts import TokenizedDataset, ValidatedDataset
from tasks.data import masks
from tasks.data.dataset import load_split
from tasks.data.records import Record
from tasks.data.tokenisation import TokenisedSplit, messages_of, tokenise, write_split
from tasks.errors import InvalidRecipe
from tasks.files.digests import digest, unchanged
from tasks.files.known_digests import file_digest
from tasks.modeling.base_model import BaseModelFolder
from tasks.modeling.context_length import RowLength, check_room, context_of
from tasks.models import base_of, check_support
from tasks.orchestration import show, shown_progress, step
from tasks.prompts import Example, PromptRenderer, renderer_of
from tasks.recipe.stages import Recipe
from tasks.steps.progress import Advance
from tasks.workspace import Workspace

if TYPE_CHECKING:
    from tasks.registry.runs import MlflowRun

VERSION = 2
SPLITS, ASKED = ("train", "validation"), ("validation", "test")
LENGTHS, UNCUT = "lengths.parquet", 1_000_000


@step(retries=2, retry_delay_seconds=[30, 120])
def preprocess(dataset: ValidatedDataset, recipe: Recipe, workspace: Workspace) -> TokenizedDataset:
    """Render and tokenise every record with the base model's tokenizer, labels on the answers alone."""
    base = base_of(recipe.base, workspace)
    check_support(base.folder, base.name, recipe.base.trust_remote_code, workspace.store)
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

        tokenized = workspace.store.make("preprocess", inputs, TokenizedDataset, build, uses=[dataset])
    _check_rooms(tokenized, recipe)
    workspace.run.log_once(tokenized, lambda run: _log_to_mlflow(run, tokenized))
    show(f"{recipe.name}-masks", tokenized.path("masks.md").read_text("utf-8"), "Which tokens are trained.")
    return tokenized


def _build(
    folder: Path, dataset: ValidatedDataset, base: BaseModelFolder, recipe: Recipe, advance: Advance
) -> TokenizedDataset:
    from transformers import AutoConfig

    prompt, trusted = recipe.prompt, recipe.base.trust_remote_code
    context = context_of(AutoConfig.from_pretrained(base.folder, trust_remote_code=trusted))
    renderer = renderer_of(base.folder, prompt, trusted)
    splits: dict[str, TokenisedSplit] = {}
    for split in SPLITS:
        examples = list(tokenise(load_split(dataset.path(f"{split}.jsonl")), renderer, advance))
        _check_examples(examples, context)
        splits[split] = write_split(examples, folder / f"{split}.parquet", split, prompt.max_length)
        if split == "train":
            summary = _summary(splits[split])
            decode = renderer.tokenizer.decode
            (folder / "masks.html").write_text(masks.html(examples, decode, summary), "utf-8")
            (folder / "masks.md").write_text(masks.markdown(examples, decode, summary), "utf-8")
    uncut = prompt.model_copy(update={"max_length": UNCUT})
    _write_lengths(folder, dataset, renderer_of(base.folder, uncut, trusted))
    renderer.tokenizer.save_pretrained(folder / "tokenizer")
    template = digest([renderer.tokenizer.chat_template, prompt.system])
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
        max_length=prompt.max_length,
        context=context,
    )


def _write_lengths(folder: Path, dataset: ValidatedDataset, renderer: PromptRenderer) -> None:
    """`lengths.parquet`: for each row that a model may be asked, its split and its length in tokens."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = []
    for split in ASKED:
        for record in load_split(dataset.path(f"{split}.jsonl")):
            messages = messages_of(record)
            prompt, whole = len(renderer.prompt_ids(messages[:-1])), len(renderer.example(messages).input_ids)
            rows.append({"split": split, **RowLength(record.id, record.source, prompt, whole)._asdict()})
    columns = {
        "split": pa.string(),
        "id": pa.string(),
        "source": pa.string(),
        "prompt": pa.int32(),
        "whole": pa.int32(),
    }
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(columns)), folder / LENGTHS)


def _check_examples(examples: Sequence[tuple[Record, Example]], context: int) -> None:
    """Raise InvalidRecipe for an example that is longer than the base model reads."""
    longest = max(examples, key=lambda pair: len(pair[1].input_ids), default=None)
    if longest and context and len(longest[1].input_ids) > context:
        record, example = longest
        raise InvalidRecipe(
            f"prompt.max_length: {record.source}: an example has {len(example.input_ids)} tokens, but this base model "
            f"reads {context}. Set prompt.max_length to {context} or less."
        )


def _check_rooms(tokenized: TokenizedDataset, recipe: Recipe) -> None:
    """Say before the training what could not be asked after it: test rows, and those that a merge is measured on."""
    import pyarrow.parquet as pq

    method = recipe.training.method
    merged = method.gives == "adapter" and not method.not_merged
    limits = {"test": recipe.evaluation.limit, **({"validation": recipe.merging.prompts} if merged else {})}
    virtual = int(getattr(method, "virtual_tokens", 0))
    context = tokenized.context - virtual if tokenized.context else 0
    rows = pq.read_table(tokenized.path(LENGTHS)).to_pylist()
    for split, limit in limits.items():
        lengths = [
            RowLength(**{name: row[name] for name in RowLength._fields}) for row in rows if row["split"] == split
        ]
        check_room(split, lengths[: limit or None], recipe.evaluation.max_new_tokens, context)


def _summary(split: TokenisedSplit) -> str:
    return (
        f"{split.rows:,} examples, {split.tokens:,} tokens, {split.trained_tokens:,} of them trained "
        f"({split.trained_tokens / max(split.tokens, 1):.0%}). {split.truncated:,} answers were cut at the longest "
        f"length, {split.dropped:,} records were left out because their prompt alone is longer."
    )


def _log_to_mlflow(run: "MlflowRun", tokenized: TokenizedDataset) -> None:
    from tasks.registry import runs

    runs.log_files(run, {"prompts": [tokenized.path("masks.html"), tokenized.path("masks.md")]})
