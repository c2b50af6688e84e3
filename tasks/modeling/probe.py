"""A base's `config.json` and a method in, this machine's speed at it out: one layer of it, trained for a moment."""

import time
from collections.abc import Mapping
from typing import Any

import torch

from tasks.modeling import memory, methods
from tasks.modeling.losses import pack_loss
from tasks.modeling.packs import collate
from tasks.recipe.methods import FullMethod, Method
from tasks.recipe.stages import ComputeRecipe
from tasks.steps.scratch import scratch_folder

TOKENS, DOCUMENTS = 256, 2
SECONDS = 1.5
"""How long passes are repeated; the first, which warms up, does not count."""


def bytes_of_a_layer(config: Mapping[str, Any]) -> int:
    """What the probe's model takes, in fp32: one layer, the embeddings and the output layer."""
    model = memory.shape_of(one_layer(config), FullMethod(), ComputeRecipe(), torch.float32)
    return sum(4 * parameter.numel() for parameter in model.parameters())


def one_layer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same base with one layer."""
    kinds = {"layer_types": config["layer_types"][:1]} if config.get("layer_types") else {}
    return {**config, "num_hidden_layers": 1, **kinds}


def speed(config: Mapping[str, Any], method: Method, compute: ComputeRecipe) -> float:
    """Operations a second of a method's forward and backward pass, by the product's own loading, loss and layers.

    The weights are random. What is counted are matrix products, so that all else a layer does is in the speed.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    values = one_layer(config)
    shape = AutoConfig.for_model(values.pop("model_type"), **values)
    with scratch_folder() as folder:
        AutoModelForCausalLM.from_config(shape, trust_remote_code=False).save_pretrained(folder)
        model = methods.load_for_training(folder, memory.without_numbers(method), compute)
        where = methods.device()
        products = methods.autocast_dtype(compute.precision, where)
        rows = [([0] * (TOKENS // DOCUMENTS), [0] * (TOKENS // DOCUMENTS))] * DOCUMENTS
        pack = collate(rows).to(where)
        operations = memory.predict(
            one_layer(config),
            method,
            compute,
            memory.PackSize(TOKENS, pack.targets.numel(), DOCUMENTS),
            where.type,
            bf16=products is torch.bfloat16,
        ).operations
        _pass(model, pack, products)
        passes, started = 0, time.perf_counter()
        while (seconds := time.perf_counter() - started) < SECONDS:
            _pass(model, pack, products)
            passes += 1
    return operations * passes / seconds


def _pass(model: Any, pack: Any, products: torch.dtype) -> None:
    where = methods.device()
    with torch.autocast(where.type, dtype=products, enabled=products is not torch.float32):
        loss = pack_loss(model, pack)
    loss.backward()  # type: ignore[no-untyped-call]
    model.zero_grad(set_to_none=True)
    if where.type == "cuda":
        torch.cuda.synchronize()
