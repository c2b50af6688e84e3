"""A base's `config.json`, a method and a pack's size in, the peak memory of training it out; no weight is loaded.

What a step holds is found by walking through it without numbers (`dry_run`). What the process holds besides was
measured: constants below say with what. The outcome to compare with is `training.process_memory.peak()`: resident
memory on a processor, what torch allocated on a GPU.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from tasks.errors import InvalidBaseModel
from tasks.modeling import attention, dry_run, methods
from tasks.recipe.methods import Initialisation, LoraMethod, Method, PromptTuningMethod
from tasks.recipe.stages import ComputeRecipe, Precision

MIB, GIB = 1 << 20, 1 << 30
FULL_RUNTIME, ADAPTER_RUNTIME = 520 * MIB, 565 * MIB
"""Resident memory of a training process on a processor with its libraries imported and no model, without and with PEFT;
the tests compare the tiny model's training with them."""
GPU_RUNTIME = 32 * MIB
"""cuBLAS's workspace, which torch allocates on the first product."""
KEPT_FREE = 1.5
"""What the processor's allocator holds for each byte of activations: freed blocks are kept for the next step."""
BLOCK, SCALES_BLOCK = 64, 256
"""bitsandbytes: 4-bit weights that share a scale, and scales that share theirs when they are quantised too."""


@dataclass(frozen=True)
class PackSize:
    """The largest pack of a training: its tokens, how many carry a label, and how many documents share it."""

    tokens: int
    labels: int
    documents: int = 1


@dataclass(frozen=True)
class Memory:
    """Predicted bytes of a training at its fullest moment, by what they are for."""

    weights: int
    adapter: int
    gradients: int
    optimiser: int
    activations: int
    logits: int
    runtime: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(vars(self).values())


@dataclass(frozen=True)
class Prediction:
    """What a training takes: peak memory, parameters that move, and operations of one pack's matrix products."""

    memory: Memory
    trainable_parameters: int
    parameters: int
    operations: int


def precision_of(compute: ComputeRecipe, device: str, bf16: bool = True) -> torch.dtype:
    """The number format of the products on a kind of device, `cpu` or `cuda`, that need not be there.

    `bf16`: whether that GPU multiplies it, as those from Ampere on do.
    """
    if compute.precision is not Precision.auto:
        return methods.autocast_dtype(compute.precision, torch.device("cpu"))
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if bf16 else torch.float16


def predict(
    config: Mapping[str, Any],
    method: Method,
    compute: ComputeRecipe,
    pack: PackSize,
    device: str = "cpu",
    bf16: bool = True,
) -> Prediction:
    """Peak memory of training a base of this shape by this method, on one process that holds all of it.

    `config` is the content of the base's `config.json`. DoRA on a quantised base and the start of PiSSA take somewhat
    more than is said here. Raises InvalidRecipe where the method does not fit this model, InvalidBaseModel where the
    model cannot be walked through: Python of its own, or a path that depends on numbers (a mixture of experts, say).
    """
    products, gpu = precision_of(compute, device, bf16), device == "cuda"
    model = shape_of(config, method, compute, products, gpu)
    laid_out = dry_run.pack_of(pack.tokens, pack.labels, pack.documents)
    try:
        peak, operations = dry_run.step(model, laid_out, products, gpu)
    except RuntimeError as fault:
        raise InvalidBaseModel(
            f"base.model: memory cannot be predicted for model_type {config['model_type']}: {fault}"
        ) from fault
    moving = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Prediction(
        memory=_on_cpu(peak, config, method, model) if device == "cpu" else _on_gpu(peak, method),
        trainable_parameters=moving,
        parameters=_count(model),
        operations=operations,
    )


def shape_of(
    config: Mapping[str, Any], method: Method, compute: ComputeRecipe, products: torch.dtype, gpu: bool = False
) -> Any:
    """The model that `methods.load_for_training` would load, on the meta device; quantised layers are stand-ins."""
    from transformers import AutoConfig, AutoModelForCausalLM

    values = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}
    try:
        shape = AutoConfig.for_model(values.pop("model_type"), **values)
    except (KeyError, ValueError) as fault:
        raise InvalidBaseModel(f"base.model: memory cannot be predicted from its config.json: {fault}") from fault
    frozen = products if method.gives == "adapter" else torch.float32
    with dry_run.META:
        model = AutoModelForCausalLM.from_config(
            shape, dtype=frozen, attn_implementation=attention.register(), trust_remote_code=False
        )
        model.config.use_cache = False
        if method.quantisation:
            _quantise(model, method.quantisation)
        if compute.gradient_checkpointing:
            # Layers are computed again outside the step's own forward pass, with the same stand-ins.
            again = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), dry_run.Kernels(products, gpu))}
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=again)
            model.enable_input_require_grads()
        model = methods.apply(model, without_numbers(method))
    if method.quantisation and products is not torch.float32:
        # PEFT's layers over bitsandbytes leave casting to autocast; those over plain layers do not.
        for module in model.modules():
            if hasattr(module, "cast_input_dtype_enabled"):
                module.cast_input_dtype_enabled = False
    return model.train()


def without_numbers(method: Method) -> Method:
    """The method as far as it has a shape: what it starts from needs numbers, and a text needs a tokenizer."""
    if isinstance(method, LoraMethod):
        return method.model_copy(update={"initialisation": Initialisation.default})
    if isinstance(method, PromptTuningMethod):
        return method.model_copy(update={"initial_text": ""})
    return method.model_copy(update={"dora": False}) if method.quantisation else method


def _quantise(model: Any, quantisation: Mapping[str, Any]) -> None:
    """Put stand-ins where transformers puts bitsandbytes' layers: every linear layer but the output's."""
    output = model.get_output_embeddings()
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and module is not output:
            model.set_submodule(
                name, dry_run.Quantised(module, packed_bytes(module, quantisation), eight_bit(quantisation))
            )
    for parameter in model.parameters():
        parameter.requires_grad_(False)


def eight_bit(quantisation: Mapping[str, Any]) -> bool:
    """Whether the base is held in 8 bits, not 4."""
    return bool(quantisation.get("load_in_8bit"))


def packed_bytes(layer: torch.nn.Linear, quantisation: Mapping[str, Any]) -> int:
    """Bytes of a quantised layer's weight with its scales.

    8 bits: one scale a row, in fp32. 4 bits: one scale for 64 weights, in fp32, or in one byte with another fp32 for
    256 of them (double quantisation; QLoRA, arXiv:2305.14314, section 3).

    >>> packed_bytes(torch.nn.Linear(64, 256, bias=False, device="meta"), {"load_in_4bit": True})
    9216
    """
    weights = layer.weight.numel()
    if eight_bit(quantisation):
        return weights + 4 * layer.out_features
    blocks = -(-weights // BLOCK)
    scales = blocks + 4 * -(-blocks // SCALES_BLOCK) if quantisation.get("bnb_4bit_use_double_quant") else 4 * blocks
    return -(-weights // 2) + scales


def _quantised(model: Any) -> list[dry_run.Quantised]:
    return [module for module in model.modules() if isinstance(module, dry_run.Quantised)]


def _count(model: Any) -> int:
    """All parameters; packed weights count as the numbers they stand for."""
    packed = sum(module.in_features * module.out_features - module.weight.numel() for module in _quantised(model))
    return packed + sum(parameter.numel() for parameter in model.parameters())


def _on_gpu(peak: Counter[str], method: Method) -> Memory:
    return _memory(peak, method, peak["weights"], peak["activations"], peak["logits"], GPU_RUNTIME)


def _on_cpu(peak: Counter[str], config: Mapping[str, Any], method: Method, model: Any) -> Memory:
    runtime = ADAPTER_RUNTIME if method.gives == "adapter" else FULL_RUNTIME
    weights = peak["weights"]
    if method.quantisation and (config.get("dtype") or config.get("torch_dtype")) == "float32":
        # What is not quantised is used right from the file, so all of the file stays mapped.
        weights += sum(4 * module.in_features * module.out_features for module in _quantised(model))
    return _memory(
        peak, method, weights, round(KEPT_FREE * peak["activations"]), round(KEPT_FREE * peak["logits"]), runtime
    )


def _memory(peak: Counter[str], method: Method, weights: int, activations: int, logits: int, runtime: int) -> Memory:
    full = method.gives == "full"
    return Memory(
        weights=weights + (peak["moving"] if full else 0),
        adapter=0 if full else peak["moving"],
        gradients=peak["gradients"],
        optimiser=peak["optimiser"],
        activations=activations,
        logits=logits,
        runtime=runtime,
    )
