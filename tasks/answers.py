"""A model folder and a suite in, its answers out: each model asks its own template, each answers the same rows once."""

import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from tasks.artifacts import ModelAnswers, StepRecord, TokenizedDataset, Who
from tasks.data.dataset import load_split
from tasks.data.tokenisation import messages_of
from tasks.evaluation.suites import Answer, Suite, SuiteRow
from tasks.files.digests import unchanged
from tasks.files.known_digests import file_digest
from tasks.files.model_files import check_code
from tasks.modeling import generation, soft_prompts
from tasks.modeling.context_length import RowLength, check_room, context_of
from tasks.modeling.loading import check_adapter_active, free_gpu_memory, load_model
from tasks.modeling.origin import is_adapter, origin_of
from tasks.prompts import IGNORED, PromptRenderer, stop_ids
from tasks.recipe.stages import EvaluationRecipe, PromptRecipe
from tasks.steps.progress import Advance
from tasks.steps.store import StepStore

VERSION = 2


@dataclass(frozen=True)
class EvaluatedModel:
    """A model to be asked: what identifies it, where it lies, and the tokenizer folder with its own template."""

    who: Who
    digest: str
    base: Path
    base_digest: str
    weights: Path | None
    tokenizer: Path
    template_digest: str
    system: str
    trust_remote_code: bool = False
    uses: tuple[StepRecord, ...] = ()
    """The steps of this flow run whose files are read."""

    def load(self) -> tuple[Any, PromptRenderer]:
        """The model and the renderer of its prompts; raises InvalidBaseModel where its files change meanwhile."""
        with ExitStack() as reading:
            reading.enter_context(unchanged(self.base, self.base_digest))
            if self.weights:
                reading.enter_context(unchanged(self.weights, self.digest))
            return self._load()

    def _load(self) -> tuple[Any, PromptRenderer]:
        from transformers import AutoTokenizer

        folder = self.weights if self.weights and not is_adapter(self.weights) else self.base
        recipe = PromptRecipe(system=self.system, max_length=1_000_000)
        tokenizer = AutoTokenizer.from_pretrained(self.tokenizer, trust_remote_code=self.trust_remote_code)
        renderer = PromptRenderer(tokenizer, recipe, stop_ids(folder))
        return load_model(self.base, self.weights, self.base_digest, self.trust_remote_code), renderer


def evaluated_base(base: Path, tokenized: TokenizedDataset, system: str, trust_remote_code: bool) -> EvaluatedModel:
    """The base model, asked in the candidate's own template."""
    return EvaluatedModel(
        "base",
        tokenized.base_digest,
        base,
        tokenized.base_digest,
        None,
        tokenized.path("tokenizer"),
        tokenized.template_digest,
        system,
        trust_remote_code,
        (tokenized,),
    )


def evaluated_version(
    who: Who, folder: Path, model_digest: str, base: Path | None = None, trust_remote_code: bool = False
) -> EvaluatedModel:
    """A model as the registry keeps it: it brings its own tokenizer, template and system message.

    `base` is where the base of an adapter lies; a merged or full model is its own. Raises InvalidBaseModel for Python
    in either folder that the recipe does not trust.
    """
    for part in (folder, base or folder):
        check_code(part, trust_remote_code, f"evaluate: {who} {part}")
    origin = origin_of(folder)
    return EvaluatedModel(
        who,
        model_digest,
        base or folder,
        origin["base"] if base else model_digest,
        folder,
        folder,
        origin["template"],
        origin["system"],
        trust_remote_code,
    )


def suite_of(path: Path, name: str, limit: int) -> Suite:
    """A split as a suite: each record's prompt and the answer it should get; at most `limit` rows, 0 for all."""
    records = load_split(path)
    rows = tuple(
        SuiteRow(
            id=record.id, messages=tuple(messages_of(record)[:-1]), reference=record.answer, columns=record.columns
        )
        for record in (records[:limit] if limit else records)
    )
    return Suite(name=name, rows=rows)


def generate_answers(
    asked: EvaluatedModel,
    suite: Suite,
    rows_digest: str,
    settings: EvaluationRecipe,
    store: StepStore,
    advance: Advance,
) -> ModelAnswers:
    """The answers of a model to a suite, found or given: a model is asked the same rows once."""
    inputs = {
        "version": VERSION,
        "model": [asked.digest, asked.template_digest, asked.system],
        "rows": rows_digest,
        "max_new_tokens": settings.max_new_tokens,
        "perplexity_rows": settings.perplexity_rows,
    }
    return store.make(
        "answers", inputs, ModelAnswers, lambda folder: _ask(folder, asked, suite, settings, advance), uses=asked.uses
    )


def read_answers(given: ModelAnswers) -> list[Answer]:
    """The answers of a step, in the suite's order."""
    with given.path("answers.jsonl").open(encoding="utf-8", newline="\n") as stream:
        return [Answer.model_validate_json(line) for line in stream]


def _ask(folder: Path, asked: EvaluatedModel, suite: Suite, recipe: EvaluationRecipe, advance: Advance) -> ModelAnswers:
    started = time.monotonic()
    model, renderer = asked.load()
    prompts = [renderer.prompt_ids(row.messages) for row in suite.rows]
    measured = suite.rows[: recipe.perplexity_rows or None]
    examples = [_example(renderer, row) for row in measured]
    lengths = [
        RowLength(row.id, "", len(prompt), len(example[0]) if example else 0)
        for row, prompt, example in zip_longest(suite.rows, prompts, examples)
    ]
    check_room(suite.name, lengths, recipe.max_new_tokens, context_of(model.config) - soft_prompts.length(model))
    if asked.weights and is_adapter(asked.weights):
        check_adapter_active(model, prompts[0])
    given = generation.generate(model, prompts, renderer.stop_ids, recipe.max_new_tokens, recipe.batch_size, advance)
    likelihoods: list[tuple[float | None, int]] = [
        *generation.reference_nll(model, examples),
        *[(None, 0)] * (len(suite.rows) - len(measured)),
    ]
    del model
    free_gpu_memory()
    answers = [
        Answer(
            text=renderer.tokenizer.decode(answer.token_ids, skip_special_tokens=True),
            tokens=len(answer.token_ids) + answer.stopped,
            stopped=answer.stopped,
            nll=nll,
            reference_tokens=tokens,
        )
        for answer, (nll, tokens) in zip(given, likelihoods, strict=True)
    ]
    path = folder / "answers.jsonl"
    path.write_text("".join(answer.model_dump_json() + "\n" for answer in answers), "utf-8", newline="\n")
    seconds = time.monotonic() - started
    return ModelAnswers(
        digest=file_digest(path), who=asked.who, model_digest=asked.digest, rows=len(answers), seconds=seconds
    )


def _example(renderer: PromptRenderer, row: SuiteRow) -> tuple[list[int], list[int]]:
    """A row with its reference, labels on the last answer alone: earlier turns are part of what was asked."""
    asked = len(renderer.prompt_ids(row.messages))
    example = renderer.example([*row.messages, {"role": "assistant", "content": row.reference}])
    return example.input_ids, [IGNORED] * asked + example.labels[asked:]
