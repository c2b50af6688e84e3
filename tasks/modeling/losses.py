"""A model and a pack in, the negative log likelihood of each label out; logits only where there is a label."""

from typing import Any

import torch

from tasks.modeling import soft_prompts
from tasks.modeling.packs import Pack


def pack_loss(model: Any, pack: Pack) -> torch.Tensor:
    """Sum of the negative log likelihoods of a pack's labels, in nats; a scalar in fp32."""
    return pack_losses(model, pack).sum()


def pack_losses(model: Any, pack: Pack) -> torch.Tensor:
    """Negative log likelihood of each label of a pack, (labels,), in fp32."""
    if soft_prompts.is_soft(model):
        logits = soft_prompts.pack_logits(model, pack)
    else:
        logits = model(
            input_ids=pack.input_ids,
            position_ids=pack.position_ids,
            document_ends=pack.document_ends,
            logits_to_keep=pack.keep,
            use_cache=False,
        ).logits
    return torch.nn.functional.cross_entropy(logits.squeeze(0).float(), pack.targets, reduction="none")
