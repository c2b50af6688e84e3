"""A base model's folder and bitsandbytes' words in, the quantised model out; and back to full precision."""

import logging
import warnings
from collections.abc import Mapping
from typing import Any

import torch

from tasks.errors import InvalidRecipe


def quantisation_config(quantisation: Mapping[str, Any], dtype: torch.dtype) -> Any:
    """transformers' configuration for `load_in_4bit` or `load_in_8bit`; products are computed in `dtype`.

    Raises InvalidRecipe where bitsandbytes is not installed.
    """
    from importlib.util import find_spec

    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise InvalidRecipe(
            "training.method: a quantised base needs the package bitsandbytes, which is not installed; install it, or "
            "choose the method lora."
        )
    # The 8-bit product rounds its inputs to fp16 by design, and says so at each layer of each step.
    warnings.filterwarnings("ignore", message="MatMul8bitLt: inputs will be cast")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    return BitsAndBytesConfig(
        **quantisation, **({"bnb_4bit_compute_dtype": dtype} if "load_in_4bit" in quantisation else {})
    )


def disable_bf16_repacking(model: Any) -> Any:
    """Keep a 4-bit model's answers those of its training.

    On processors with AVX512-BF16 bitsandbytes repacks a 4-bit weight for good when it is first asked without
    gradients, and computes in bf16 from then on: half a logit of difference on a small model, and garbage out of
    `dequantize`.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model


def dequantised(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The same model with every quantised layer passed back: weights in `dtype`, rounded as the quantised ones were.

    An adapter that was trained on the quantised base sees the very numbers it was trained on. `model` is used up.
    """
    return model.dequantize(dtype=dtype)
