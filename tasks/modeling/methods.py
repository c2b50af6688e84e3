"""A base model and a method in, the model to train out: which parameters exist, and which of them move."""

from pathlib import Path
from typing import Any

import torch

from tasks.errors import InvalidRecipe
from tasks.modeling import attention
from tasks.recipe import FullMethod, LoraMethod, Method, Precision


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


def load_base(folder: Path, attention_name: str = "sdpa", trust_remote_code: bool = False) -> Any:
    """The base model from its folder, in fp32, on this process's device; safetensors only."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation=attention_name,
        use_safetensors=True,
        trust_remote_code=trust_remote_code,
    )
    return model.to(device())


def load_for_training(folder: Path, method: Method, checkpointing: bool, trust_remote_code: bool = False) -> Any:
    """The model a method trains, in training mode, documents isolated."""
    model = load_base(folder, attention.register(), trust_remote_code)
    model.config.use_cache = False
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    model = apply(model, method)
    model.train()
    return model


def apply(model: Any, method: Method) -> Any:
    """Put a method on a base model. Raises InvalidRecipe where the method does not fit this model."""
    if isinstance(method, FullMethod):
        return model
    from peft import get_peft_model

    try:
        return get_peft_model(model, peft_config(method))
    except ValueError as fault:
        raise InvalidRecipe(f"training.method: {fault}") from fault


def peft_config(method: LoraMethod) -> Any:
    """PEFT's own configuration of a method."""
    from peft import LoraConfig

    modules = method.target_modules
    return LoraConfig(
        r=method.rank,
        lora_alpha=method.alpha,
        lora_dropout=method.dropout,
        target_modules=modules[0] if modules == ["all-linear"] else modules,
        task_type="CAUSAL_LM",
    )


def trainable(model: Any) -> dict[str, torch.nn.Parameter]:
    """The parameters that move, by name, in the model's order."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
