"""Prompts in, answers out: greedy generation in batches of similar length; and references in, likelihoods out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tasks.modeling import soft_prompts
from tasks.modeling.batches import collate, fill
from tasks.modeling.losses import pack_losses
from tasks.progress import Advance, silent
from tasks.prompts import IGNORED

NEVER_TOKENS = 1024


@dataclass(frozen=True)
class GeneratedAnswer:
    """Generated token ids without the stop token, and whether the model stopped by itself."""

    token_ids: list[int]
    stopped: bool


def batches_by_length(prompts: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Prompt numbers in batches, longest first, so that little is padded and what needs most memory comes first."""
    order = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    stop_ids: frozenset[int],
    max_new_tokens: int,
    batch_size: int,
    advance: Advance = silent,
) -> list[GeneratedAnswer]:
    """Greedy answers to prompts of token ids, in their order.

    Padding is left and masked by position, never by token: a pad token may be the stop token too.
    """
    answers: list[GeneratedAnswer | None] = [None] * len(prompts)
    for numbers in batches_by_length(prompts, batch_size):
        rows = [prompts[number] for number in numbers]
        for number, answer in zip(numbers, _generate_batch(model, rows, stop_ids, max_new_tokens), strict=True):
            answers[number] = answer
        advance(len(numbers))
    return [answer for answer in answers if answer is not None]


def _generate_batch(
    model: Any, rows: Sequence[Sequence[int]], stop_ids: frozenset[int], max_new_tokens: int
) -> list[GeneratedAnswer]:
    width = max(len(row) for row in rows)
    pad = next(iter(stop_ids))
    ids = torch.tensor([[pad] * (width - len(row)) + list(row) for row in rows], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=model.device)
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": sorted(stop_ids),
        "pad_token_id": pad,
        "use_cache": True,
    }
    with torch.inference_mode():
        if soft_prompts.is_soft(model):
            new = soft_prompts.generate(model, ids, mask, **options)
        else:
            new = model.generate(input_ids=ids, attention_mask=mask, **options)[:, width:]
    return [_until_stop(row, stop_ids) for row in new.tolist()]


def _until_stop(new: list[int], stop_ids: frozenset[int]) -> GeneratedAnswer:
    for place, token in enumerate(new):
        if token in stop_ids:
            return GeneratedAnswer(new[:place], stopped=True)
    return GeneratedAnswer(new, stopped=False)


def reference_nll(
    model: Any, examples: Sequence[tuple[list[int], list[int]]], advance: Advance = silent
) -> list[tuple[float, int]]:
    """For each example (ids, labels): the sum of its labels' negative log likelihoods in nats, and their number.

    A pack is told apart into documents by its positions; with a prefix in the cache it cannot be, and holds one.
    """
    results: list[tuple[float, int]] = []
    alone = soft_prompts.is_soft(model) and soft_prompts.is_prefix(model)
    lengths = [len(ids) for ids, _ in examples]
    with torch.inference_mode():
        for numbers in fill(range(len(examples)), lengths, 1 if alone else NEVER_TOKENS):
            chosen = [examples[number] for number in numbers]
            losses = pack_losses(model, collate(chosen).to(model.device))
            counts = [sum(label != IGNORED for label in labels[1:]) for _, labels in chosen]
            results += [(float(part.sum()), part.numel()) for part in torch.split(losses, counts)]
            advance(len(numbers))
    return results
