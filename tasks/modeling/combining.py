"""LoRA adapters of one base and a weight each in, one adapter out, put together as PEFT's `add_weighted_adapter` does.

`linear` adds the matrices of equal ranks (cheap, and rough: products of different adapters' halves come in), `svd` adds
the changes themselves and keeps the largest directions, `ties` (https://arxiv.org/abs/2306.01708) keeps the largest
changes and lets the majority choose the sign, `dare_ties` (https://arxiv.org/abs/2311.03099) drops changes at random
before that.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tasks.errors import InvalidBaseModel, InvalidRecipe
from tasks.modeling.adapter_files import check_plain_lora
from tasks.modeling.methods import load_base
from tasks.modeling.origin import ADAPTER_CONFIG, origin_of
from tasks.modeling.saving import save
from tasks.recipe.methods import CombineMethod

COMBINED = "default"
"""PEFT's name for the one adapter that it saves at the top of a folder."""


def combine(
    base: Path,
    adapters: Sequence[Path],
    method: CombineMethod,
    origin: Mapping[str, Any],
    folder: Path,
    seed: int,
    tokenizer: Path | None = None,
    trust_remote_code: bool = False,
) -> int:
    """Write one adapter made of several, as a trained one is written; gives the number of its parameters.

    `adapters` are folders, one for each of `method.adapters`; `origin` is what the combination is bound to, of which
    `quantisation` is taken from the adapters. The tokenizer is the first adapter's where none is named. The same seed
    gives the same bytes.

    Raises InvalidBaseModel for an adapter of another base, InvalidRecipe for adapters that do not fit together.
    """
    origin = {**origin, "quantisation": check(adapters, method, str(origin["base"]))}
    from peft import PeftModel

    plain = load_base(base, trust_remote_code=trust_remote_code)
    names = [f"adapter{number}" for number in range(len(adapters))]
    model = PeftModel.from_pretrained(plain, adapters[0], adapter_name=names[0])
    for name, weights in zip(names[1:], adapters[1:], strict=True):
        model.load_adapter(weights, name)
    shares = method.weights or [1 / len(adapters)] * len(adapters)
    # SVD on the cut form: the directions that are kept are the same, at a fraction of the time and memory.
    options = {"combination_type": method.combination, "density": method.density, "svd_full_matrices": False}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            model.add_weighted_adapter(names, shares, COMBINED, **options)
        except (ValueError, TypeError) as fault:
            raise InvalidRecipe(f"training.method: these adapters cannot be combined: {fault}") from fault
    model.set_adapter(COMBINED)
    for name in names:
        model.delete_adapter(name)
    # PEFT puts every scale into the matrices, and would scale once more by the first adapter's rule.
    model.peft_config[COMBINED].use_rslora = False
    save(model, tokenizer or adapters[0], folder, origin, trust_remote_code=trust_remote_code)
    return sum(weight.numel() for name, weight in model.named_parameters() if f".{COMBINED}." in name)


def check(adapters: Sequence[Path], method: CombineMethod, base_digest: str) -> dict[str, Any]:
    """Whether adapters can be combined, by their files alone; gives the quantisation that they share.

    Raises as `combine` does.
    """
    configs = {weights: _config(weights) for weights in adapters}
    origins = {weights: origin_of(weights) for weights in adapters}
    for weights, origin in origins.items():
        if origin.get("base") != base_digest:
            raise InvalidBaseModel(
                f"{weights}: the adapter was trained on base {origin.get('base')}, and the recipe's base is "
                f"{base_digest}; adapters of one base can be combined."
            )
    ranks = [_rank(config) for config in configs.values()]
    if method.combination != "svd" and len(set(ranks)) > 1:
        raise InvalidRecipe(
            f"training.method.combination: {method.combination} needs equal ranks, and these adapters have "
            f"{', '.join(map(str, ranks))}; choose svd."
        )
    held = [origin.get("quantisation") or {} for origin in origins.values()]
    if any(each != held[0] for each in held):
        raise InvalidRecipe(
            "training.method.adapters: they were trained on one base held in different forms: "
            f"{'; '.join(json.dumps(each) if each else 'full precision' for each in held)}."
        )
    return dict(held[0])


def _config(weights: Path) -> dict[str, Any]:
    path = weights / ADAPTER_CONFIG
    if not path.is_file():
        raise InvalidRecipe(
            f"training.method.adapters: {weights}: no adapter lies there ({ADAPTER_CONFIG} is missing)."
        )
    return check_plain_lora(weights, "training.method.adapters")


def _rank(config: Mapping[str, Any]) -> int:
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])
