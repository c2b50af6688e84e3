"""Prompts in, answers out: greedy generation in batches of similar length; and references in, likelihoods out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tasks.modeling import attention, soft_prompts
from tasks.modeling.losses import pack_losses
from tasks.modeling.packs import collate, fill
from tasks.prompts import IGNORED
from tasks.steps.progress import Advance, silent

PACK_TOKENS = 1024
WORTH_A_PASS = 8


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
    longest = max(map(len, prompts), default=0) + max_new_tokens + soft_prompts.length(model)
    if soft_prompts.is_soft(model) and soft_prompts.is_prefix(model) and not may_share(model.config, longest):
        # Pads would stand between the prefix and the prompt.
        batch_size = 1
    for numbers in batches_by_length(prompts, batch_size):
        rows = [prompts[number] for number in numbers]
        for number, answer in zip(numbers, _in_room(model, rows, stop_ids, max_new_tokens), strict=True):
            answers[number] = answer
        advance(len(numbers))
    return [answer for answer in answers if answer is not None]


def _in_room(
    model: Any, rows: Sequence[Sequence[int]], stop_ids: frozenset[int], max_new_tokens: int
) -> list[GeneratedAnswer]:
    """A batch's answers; by halves where a GPU has no room for all at once."""
    try:
        return _generate_batch(model, rows, stop_ids, max_new_tokens)
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    # Outside of the handler, which holds on to what was computed.
    torch.cuda.empty_cache()
    half = len(rows) // 2
    return [answer for part in (rows[:half], rows[half:]) for answer in _in_room(model, part, stop_ids, max_new_tokens)]


def _generate_batch(
    model: Any, rows: Sequence[Sequence[int]], stop_ids: frozenset[int], max_new_tokens: int
) -> list[GeneratedAnswer]:
    pad = next(iter(stop_ids))
    options: dict[str, Any] = {
        "do_sample": False,
        "max_new_tokens": max_new_tokens,
        "eos_token_id": sorted(stop_ids),
        "pad_token_id": pad,
        "use_cache": True,
    }
    with torch.inference_mode():
        if soft_prompts.is_soft(model):
            ids, mask = _left_padded(rows, pad, model.device)
            new = soft_prompts.generate(model, ids, mask, **options)
        else:
            longest = max(len(row) for row in rows) + max_new_tokens
            shared = shared_start(rows) if may_share(model.config, longest) else 0
            ids, mask = _left_padded(rows, pad, model.device, shared)
            known = {"past_key_values": _read_once(model, ids[:1, :shared], len(rows))} if shared else {}
            new = model.generate(input_ids=ids, attention_mask=mask, **options, **known)[:, ids.shape[1] :]
    return [_until_stop(row, stop_ids) for row in new.tolist()]


def shared_start(rows: Sequence[Sequence[int]]) -> int:
    """How many first tokens all prompts have in common, fewer than the shortest has; 0 where it is not worth a pass.

    >>> shared_start([list(range(20)) + [1, 2], list(range(20)) + [3]])
    20
    """
    first, last = min(map(list, rows)), max(map(list, rows))
    length = min(len(row) for row in rows) - 1
    same = next((place for place in range(length) if first[place] != last[place]), length)
    return same if same >= WORTH_A_PASS and len(rows) > 1 else 0


def may_share(config: Any, length: int) -> bool:
    """Whether pads may stand behind a shared start in sequences of this many tokens.

    They may where every layer reads the whole sequence and skips what is masked. A layer with a window counts pads as
    tokens, and a layer with a recurrent state cannot be copied to several rows.
    """
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    return all(
        type(layer) is DynamicLayer or (type(layer) is DynamicSlidingWindowLayer and length <= layer.sliding_window)
        for layer in DynamicCache(config=config).layers
    )


def _left_padded(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device, shared: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, (rows, width): the shared start, then pads, then each prompt's own rest."""
    width = max(len(row) for row in rows)
    gaps = [width - len(row) for row in rows]
    ids = [[*row[:shared], *[pad] * gap, *row[shared:]] for row, gap in zip(rows, gaps, strict=True)]
    mask = [[1] * shared + [0] * gap + [1] * (width - shared - gap) for gap in gaps]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _read_once(model: Any, start: torch.Tensor, rows: int) -> Any:
    """The cache of a start that all rows share, computed once: of a short prompt it is the most."""
    from transformers import DynamicCache

    cache = DynamicCache(config=model.config)
    model(input_ids=start, past_key_values=cache, use_cache=True, logits_to_keep=1)
    cache.batch_repeat_interleave(rows)
    return cache


def _until_stop(new: list[int], stop_ids: frozenset[int]) -> GeneratedAnswer:
    for place, token in enumerate(new):
        if token in stop_ids:
            return GeneratedAnswer(new[:place], stopped=True)
    return GeneratedAnswer(new, stopped=False)


def reference_nll(
    model: Any, examples: Sequence[tuple[list[int], list[int]]], advance: Advance = silent
) -> list[tuple[float, int]]:
    """For each example (ids, labels): the sum of its labels' negative log likelihoods in nats, and their number.

    Examples share packs as in training, with the same attention: each reads itself alone.
    """
    results: list[tuple[float, int]] = []
    lengths = [len(ids) for ids, _ in examples]
    with torch.inference_mode(), attention.documents_apart(model):
        for numbers in fill(range(len(examples)), lengths, PACK_TOKENS):
            chosen = [examples[number] for number in numbers]
            losses = pack_losses(model, collate(chosen).to(model.device))
            counts = [sum(label != IGNORED for label in labels[1:]) for _, labels in chosen]
            results += [(float(part.sum()), part.numel()) for part in torch.split(losses, counts)]
            advance(len(numbers))
    return results
