"""Attention that keeps packed documents apart: one causal product per document, no mask, no waste.

    pack           a a a a | b b | c c c        document_ends = (4, 6, 9)
    token 6 (c)    reads none of a and b: only itself

Registered with transformers under the name `documents`; a forward pass says where documents end through the keyword
`document_ends`. Without it the sequence is one document. Pads, caches and masks are not for this function: generation
uses what transformers takes by itself. The documents' lengths, not the pack's, decide the cost, so that a pack may be
as long as memory allows.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from tasks.errors import InvalidBaseModel

NAME = "documents"


def register() -> str:
    """Make the attention known to transformers and return its name; calling it twice is fine."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, document_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    return NAME


@contextmanager
def documents_apart(model: Any) -> Iterator[None]:
    """For the length of a `with`, the model computes packs as in training, whichever attention it generates with.

    Raises InvalidBaseModel for an architecture that cannot.
    """
    usual = model.config._attn_implementation
    model.set_attn_implementation(register())
    if model.config._attn_implementation != NAME:
        raise InvalidBaseModel(f"{type(model).__name__} takes no attention but its own")
    try:
        yield
    finally:
        model.set_attn_implementation(usual)


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
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention inside each document of a pack, within the layer's window where it has one.

    query is (1, heads, tokens, size), key and value (1, key-value heads, prefix + tokens, size), where every document
    reads the prefix, if there is one; the result is (1, tokens, heads, size). `document_ends` are the positions after
    each document's last token, ascending. A layer that caps its scores (`softcap`) or has attention sinks (`s_aux`)
    computes each document by its own code.
    """
    ends = list(document_ends) or [query.shape[2]]
    prefix = key.shape[2] - query.shape[2]
    one_document = _own_attention if softcap is not None or s_aux is not None else _fused_attention
    options: dict[str, Any] = {"scaling": scaling, "dropout": dropout, "softcap": softcap, "s_aux": s_aux}
    pieces = [
        one_document(
            module,
            query[:, :, start:end],
            _document(key, prefix, start, end),
            _document(value, prefix, start, end),
            sliding_window,
            **options,
        )
        for start, end in zip([0, *ends], ends, strict=False)
    ]
    return torch.cat(pieces, dim=1), None


def _fused_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    *,
    scaling: float | None,
    dropout: float,
    **_: Any,
) -> torch.Tensor:
    """One document's (1, tokens, heads, size), by torch's kernel: without a mask where causality is all of it."""
    tokens, length = query.shape[2], key.shape[2]
    whole = tokens == length and not (window and tokens > window)
    return scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=None if whole else _mask(tokens, length, window, query.device),
        dropout_p=dropout if module.training else 0.0,
        scale=scaling,
        is_causal=whole,
        enable_gqa=key.shape[1] != query.shape[1],
    ).transpose(1, 2)


def _own_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    window: int | None,
    **options: Any,
) -> torch.Tensor:
    """One document's (1, tokens, heads, size), by the architecture's own code."""
    mask = _mask(query.shape[2], key.shape[2], window, query.device)
    added = torch.zeros(mask.shape, dtype=query.dtype, device=query.device)
    added.masked_fill_(~mask, torch.finfo(query.dtype).min)
    own = sys.modules[type(module).__module__].eager_attention_forward
    result: torch.Tensor = own(module, query, key, value, added[None, None], **options)[0]
    return result


def _document(states: torch.Tensor, prefix: int, start: int, end: int) -> torch.Tensor:
    own = states[:, :, prefix + start : prefix + end]
    return torch.cat([states[:, :, :prefix], own], dim=2) if prefix else own


def _mask(tokens: int, length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """(tokens, length), true where read: everything of a prefix, then causal, and no further back than the window.

    >>> _mask(3, 3, 2, torch.device("cpu")).int().tolist()
    [[1, 0, 0], [1, 1, 0], [0, 1, 1]]
    """
    mask = torch.ones(tokens, length, dtype=torch.bool, device=device).tril(length - tokens)
    return mask.triu(length - tokens - window + 1) if window else mask
