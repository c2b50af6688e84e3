"""Attention that keeps packed documents apart: one causal product a document, no mask, no waste.

Registered with transformers under the name `documents`; a forward pass says where documents end through the keyword
`document_ends`. Without it the sequence is one document. Pads, caches and masks are not for this function: generation
uses `sdpa`. The bound sizes, not the pack, decide the cost, so that a pack may be as long as memory allows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAME = "documents"


def register() -> str:
    """Make the attention known to transformers and return its name; calling it twice is fine."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, document_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    return NAME


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 (transformers' signature)
    scaling: float | None = None,
    dropout: float = 0.0,
    document_ends: Sequence[int] = (),
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document of a pack.

    query is (1, heads, tokens, size), key and value (1, key-value heads, prefix + tokens, size), where every document
    reads the prefix, if there is one; the result is (1, tokens, heads, size). `document_ends` are the positions after
    each document's last token, ascending.
    """
    ends = list(document_ends) or [query.shape[2]]
    if sliding_window and max(end - start for start, end in zip([0, *ends], ends, strict=False)) > sliding_window:
        raise ValueError(
            f"a document is longer than the model's sliding window ({sliding_window}); lower prompt.max_length"
        )
    prefix = key.shape[2] - query.shape[2]
    pieces = [
        scaled_dot_product_attention(
            query[:, :, start:end],
            _document(key, prefix, start, end),
            _document(value, prefix, start, end),
            attn_mask=_after_prefix(prefix, end - start, query.device) if prefix else None,
            dropout_p=dropout if module.training else 0.0,
            scale=scaling,
            is_causal=not prefix,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return torch.cat(pieces, dim=2).transpose(1, 2), None


def _document(states: torch.Tensor, prefix: int, start: int, end: int) -> torch.Tensor:
    own = states[:, :, prefix + start : prefix + end]
    return torch.cat([states[:, :, :prefix], own], dim=2) if prefix else own


def _after_prefix(prefix: int, tokens: int, device: torch.device) -> torch.Tensor:
    """(tokens, prefix + tokens): everything of the prefix, then causal."""
    return torch.ones(tokens, prefix + tokens, dtype=torch.bool, device=device).tril(prefix)
