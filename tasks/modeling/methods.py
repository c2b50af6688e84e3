"""A base model and a method in, the model to train out: which parameters exist, and which of them move."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from tasks.errors import InvalidRecipe
from tasks.modeling import attention
from tasks.modeling.quantisation import disable_bf16_repacking, quantisation_config
from tasks.recipe.methods import (
    ALL_LINEAR,
    AdaptionPromptMethod,
    Ia3Method,
    Initialisation,
    LoraMethod,
    LowRankMethod,
    Method,
    PeftMethod,
    PrefixTuningMethod,
    PromptTuningMethod,
    PTuningMethod,
)
from tasks.recipe.peft_options import make_config
from tasks.recipe.stages import ComputeRecipe, Precision


def device() -> torch.device:
    """The device of this process: its GPU where there is one."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def autocast_dtype(precision: Precision, where: torch.device) -> torch.dtype:
    """The number format of the matrix products: what the recipe says, or what is fast on this device.

    On processors without matrix units for it, bf16 is some hundred times slower than fp32, so `auto` is fp32 there.
    """
    if precision is not Precision.auto:
        return {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16, Precision.fp16: torch.float16}[precision]
    if where.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability(where)[0] >= 8 else torch.float16


def load_base(
    folder: Path,
    attention_name: str | None = None,
    trust_remote_code: bool = False,
    quantisation: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """The base model from its folder, in `dtype`, on this process's device, quantised where asked; safetensors only.

    Without an `attention_name`, transformers takes the fastest kernel that this architecture supports.
    """
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {}
    if quantisation:
        options = {"quantization_config": quantisation_config(quantisation, dtype), "device_map": {"": device()}}
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation=attention_name,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
        **options,
    )
    return disable_bf16_repacking(model) if quantisation else model.to(device())


def load_for_training(folder: Path, method: Method, compute: ComputeRecipe, trust_remote_code: bool = False) -> Any:
    """The model a method trains, in training mode, documents isolated.

    Weights that move are kept in fp32; frozen ones in the number format of the products, which is fp32 on a CPU.
    """
    frozen = autocast_dtype(compute.precision, device()) if method.gives == "adapter" else torch.float32
    model = load_base(folder, attention.register(), trust_remote_code, method.quantisation, frozen)
    model.config.use_cache = False
    if compute.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model = apply(model, method, folder)
    for parameter in trainable(model).values():
        # PEFT makes some kinds (LLaMA-Adapter, trained norms) in the base's format.
        parameter.data = parameter.data.float()
    model.train()
    return model


def apply(model: Any, method: Method, tokenizer: Path | None = None) -> Any:
    """Put a method on a base model. Raises InvalidRecipe where the method does not fit this model."""
    if method.gives == "full":
        return model
    from peft import get_peft_model

    try:
        return get_peft_model(model, peft_config(method, model.config, tokenizer))
    except (ValueError, TypeError, AttributeError, NotImplementedError) as fault:
        raise InvalidRecipe(f"training.method: {method.type} does not fit this base model: {fault}") from fault


def peft_config(method: Method, model_config: Any, tokenizer: Path | None = None) -> Any:
    """PEFT's own configuration of a method for a model; `tokenizer` is the folder that an initial text is read with."""
    kind, options = _options(method, model_config, tokenizer)
    return make_config(kind, options)


def _options(method: Method, model_config: Any, tokenizer: Path | None) -> tuple[str, dict[str, Any]]:
    """PEFT's type and its options."""
    match method:
        case LowRankMethod():
            start = method.initialisation if isinstance(method, LoraMethod) else Initialisation.default
            return "LORA", {
                "r": method.rank,
                "lora_alpha": method.alpha,
                "lora_dropout": method.dropout,
                "target_modules": ALL_LINEAR if method.target_modules == [ALL_LINEAR] else method.target_modules,
                "use_rslora": method.rslora,
                "use_dora": method.dora,
                "init_lora_weights": True if start is Initialisation.default else start.value,
            }
        case Ia3Method():
            modules = {"target_modules": method.target_modules, "feedforward_modules": method.feedforward_modules}
            return "IA3", modules
        case PromptTuningMethod():
            words = {"prompt_tuning_init": "SAMPLE_VOCAB"}
            if method.initial_text:
                words = {"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": method.initial_text}
                words["tokenizer_name_or_path"] = str(tokenizer)
            return "PROMPT_TUNING", {"num_virtual_tokens": method.virtual_tokens, **words}
        case PrefixTuningMethod():
            projection = {"prefix_projection": True, "encoder_hidden_size": method.projection_size}
            return "PREFIX_TUNING", {
                "num_virtual_tokens": method.virtual_tokens,
                **(projection if method.projection_size else {}),
            }
        case PTuningMethod():
            return "P_TUNING", {
                "num_virtual_tokens": method.virtual_tokens,
                "encoder_reparameterization_type": method.encoder.upper(),
                "encoder_hidden_size": method.encoder_size,
            }
        case AdaptionPromptMethod():
            layers = method.layers or model_config.num_hidden_layers
            return "ADAPTION_PROMPT", {"adapter_len": method.prompt_tokens, "adapter_layers": layers}
        case PeftMethod():
            return method.peft_type, method.options
    raise InvalidRecipe(f"training.method: {method.type} is not a method that is trained")


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that move, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def count(model: Any) -> int:
    """All parameters of a model; a packed 4-bit weight counts as the numbers it stands for."""
    return sum(
        int(parameter.quant_state.shape.numel())
        if hasattr(parameter, "quant_state") and parameter.quant_state
        else parameter.numel()
        for parameter in model.parameters()
    )
