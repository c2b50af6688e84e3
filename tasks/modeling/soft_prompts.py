"""Prompts that are vectors, before prompts that are text: packs and batches in, logits and answers out.

PEFT puts its virtual tokens before a padded row: a pack has many documents, each of which must read them, and between
the virtual tokens and a left-padded prompt there would be pads that move every position. So the pack is laid out here
([soft prompt, document] after each other, each with its own positions), and a batch is padded left of the soft prompt.
"""

from typing import Any

import torch

from tasks.modeling.packs import Pack


def is_soft(model: Any) -> bool:
    """Whether a model reads a soft prompt: prompt tuning, p-tuning or prefix tuning of PEFT."""
    config = getattr(model, "active_peft_config", None)
    return bool(config is not None and config.is_prompt_learning)


def length(model: Any) -> int:
    """Tokens of a model's context that its soft prompt takes; 0 for a model without one."""
    return int(model.active_peft_config.num_virtual_tokens) if is_soft(model) else 0


def is_prefix(model: Any) -> bool:
    """Whether the soft prompt stands in the cache (prefix tuning) and not among the embeddings."""
    return bool(model.active_peft_config.peft_type == "PREFIX_TUNING")


def pack_logits(model: Any, pack: Pack) -> torch.Tensor:
    """Logits at `pack.keep`, (1, labels, vocabulary), every document after the soft prompt."""
    virtual = model.active_peft_config.num_virtual_tokens
    if is_prefix(model):
        return model.base_model(
            input_ids=pack.input_ids,
            position_ids=pack.position_ids + virtual,
            past_key_values=model.get_prompt(batch_size=1),
            document_ends=pack.document_ends,
            logits_to_keep=pack.keep,
            use_cache=False,
        ).logits
    embeddings = model.word_embeddings(pack.input_ids)
    soft = model.get_prompt(batch_size=1).to(embeddings.dtype)
    starts = [0, *pack.document_ends[:-1]]
    pieces = [
        part for start, end in zip(starts, pack.document_ends, strict=True) for part in (soft, embeddings[:, start:end])
    ]
    lengths = [end - start for start, end in zip(starts, pack.document_ends, strict=True)]
    positions = torch.cat([torch.arange(virtual + length, device=soft.device) for length in lengths])
    ends = [end + virtual * number for number, end in enumerate(pack.document_ends, 1)]
    # A kept position moves by the soft prompts of its own document and of those before it.
    before = torch.bucketize(pack.keep, torch.tensor(pack.document_ends, device=pack.keep.device), right=True)
    return model.base_model(
        inputs_embeds=torch.cat(pieces, dim=1),
        position_ids=positions[None],
        document_ends=ends,
        logits_to_keep=pack.keep + virtual * (before + 1),
        use_cache=False,
    ).logits


def generate(model: Any, ids: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
    """New tokens for left-padded prompts: ids and mask are (rows, width), the result is (rows, new tokens)."""
    rows, width = ids.shape
    virtual = model.active_peft_config.num_virtual_tokens
    seen = torch.ones((rows, virtual), dtype=mask.dtype, device=mask.device)
    if is_prefix(model):
        # The tokens under the prefix are never read: the cache has their keys and values already.
        filled = torch.cat([torch.zeros_like(seen), ids], dim=1)
        output = model.base_model.generate(
            input_ids=filled,
            attention_mask=torch.cat([seen, mask], dim=1),
            past_key_values=model.get_prompt(batch_size=rows),
            **options,
        )
        return output[:, virtual + width :]
    embeddings = model.word_embeddings(ids)
    soft = model.get_prompt(batch_size=rows).to(embeddings.dtype)
    pads = (mask == 0).sum(dim=1).tolist()
    joined = [
        torch.cat([row[:pad], prompt, row[pad:]]) for row, prompt, pad in zip(embeddings, soft, pads, strict=True)
    ]
    shifted = torch.stack(
        [torch.cat([row[:pad], one, row[pad:]]) for row, one, pad in zip(mask, seen, pads, strict=True)]
    )
    return model.base_model.generate(inputs_embeds=torch.stack(joined), attention_mask=shifted, **options)
