"""A base's config and a method's quantisation in; a refusal out where weights are stored in bits that do not fit."""

from collections.abc import Mapping
from typing import Any

from tasks.errors import InvalidBaseModel

KEY = "quantization_config"
ADVICE = "Take the base in bf16, fp16 or fp32: training.method qlora and lora_8bit quantise it themselves."


def check_stored_format(config: Mapping[str, Any], name: str, quantisation: Mapping[str, Any] | None) -> None:
    """Refuse a base whose weights are quantised already, as far as they cannot be loaded or folded here.

    What transformers unpacks when it loads (fp8 and mxfp4, where there are no kernels for them) is let through.
    Raises InvalidBaseModel.
    """
    decoder = config.get("text_config")
    stored = config.get(KEY) or (decoder.get(KEY) if isinstance(decoder, Mapping) else None)
    if not stored:
        return
    kind = stored.get("quant_method", "unknown") if isinstance(stored, Mapping) else "unknown"
    said = f"base.model: {name}: config.json says that its weights are quantised ({KEY}: {kind})"
    if quantisation:
        raise InvalidBaseModel(f"{said}, and training.method would quantise them a second time. {ADVICE}")
    if kind == "bitsandbytes":
        raise InvalidBaseModel(f"{said}: an adapter cannot be folded into such weights. {ADVICE}")
    from transformers.quantizers import AutoHfQuantizer

    try:
        AutoHfQuantizer.from_config(stored, pre_quantized=True).validate_environment(device_map=None, weights_only=True)
    except (ImportError, RuntimeError, ValueError, TypeError, AttributeError) as fault:
        raise InvalidBaseModel(f"{said}, which cannot be loaded here: {fault} {ADVICE}") from fault
