"""A base's folder in, proof that it can be trained and asked here out: tried on a small model of its kind.

What is assumed of a base elsewhere is tried: that the documents of a pack do not read each other, that attention in
training is the model's own, and that a batch is answered as each prompt alone.
"""

import logging
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, TypeVar

import torch

from tasks.errors import InvalidBaseModel
from tasks.modeling import attention
from tasks.modeling.generation import GeneratedAnswer, generate
from tasks.modeling.losses import pack_losses
from tasks.modeling.packs import collate
from tasks.modeling.small_model import WINDOW, smaller
from tasks.prompts import IGNORED

MOST_PARAMETERS = 300_000_000
SEEDS = (0, 1)
"""A random model can be undecided between two tokens or two experts; it is not so twice."""
SHARED, RESTS, NEW_TOKENS = 12, (5, 2 * WINDOW, 2, WINDOW), 8
TOLERANCE = 1e-2
"""In nats. Rounding stays far below; a neighbour that is read, or a cap that is missing, goes far beyond."""
Result = TypeVar("Result")
log = logging.getLogger("tuneline")


def check(folder: Path, name: str, trust_remote_code: bool = False) -> None:
    """Refuse a base that would be trained or evaluated wrongly, or not at all.

    Raises InvalidBaseModel with its architecture and what it does not do.
    """
    config = _configuration(folder, name, trust_remote_code)
    refusal: _Refused | None = None
    with torch.random.fork_rng(devices=[]):
        for narrow in (True, False):
            small = _small(config, narrow, trust_remote_code)
            if small is None:
                continue
            refusal = _refusal_of(small, trust_remote_code)
            if refusal is None:
                return
            if not isinstance(refusal, _NotAsked):
                break
    if refusal is None:
        log.warning("base.model: %s: no small model of type %s can be tried first.", name, config.model_type)
        return
    raise InvalidBaseModel(
        f"base.model: {name}: {config.model_type} {refusal}. Choose a base of another type."
    ) from refusal


def _configuration(folder: Path, name: str, trust_remote_code: bool) -> Any:
    """The base's configuration; raises InvalidBaseModel where it is none of a model that continues texts."""
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as fault:
        # Each architecture has its own words for values that do not go together.
        raise InvalidBaseModel(
            f"base.model: {name}: transformers does not take its config.json ({folder}): {fault}"
        ) from fault
    own_code = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if type(config) not in AutoModelForCausalLM._model_mapping and not own_code:
        raise InvalidBaseModel(
            f"base.model: {name}: {config.model_type} does not continue texts: transformers has no causal language "
            "model of this type. Choose a base of another type."
        )
    return config


class _Refused(Exception):
    """What a small model does not do."""


class _NotAsked(_Refused):
    """It does not answer at all, by transformers alone: the base's fault, or that of sizes nobody meant for it."""


def _small(config: Any, narrow: bool, trust_remote_code: bool) -> Any | None:
    """A small configuration of which a model can be built here; None where there is none."""
    try:
        small = smaller(config, narrow)
        with torch.device("meta"):
            model = _built(small, 0, trust_remote_code)
    except Exception as fault:  # noqa: BLE001 (whatever a class says of sizes that nobody meant for it)
        log.debug("support: %s, narrow %s: %s", config.model_type, narrow, fault)
        return None
    return small if sum(parameter.numel() for parameter in model.parameters()) <= MOST_PARAMETERS else None


def _built(config: Any, seed: int, trust_remote_code: bool) -> Any:
    from transformers import AutoModelForCausalLM, GenerationConfig

    torch.manual_seed(seed)
    # A model writes into its configuration.
    model = AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.float32, trust_remote_code=trust_remote_code)
    model.generation_config = GenerationConfig()
    return model.eval()


def _refusal_of(config: Any, trust_remote_code: bool) -> _Refused | None:
    """Why models of a configuration cannot be used: what one of each seed does not do."""
    refusal = None
    for seed in SEEDS:
        try:
            _try(_built(config, seed, trust_remote_code))
        except _Refused as refused:
            refusal = refused
        else:
            return None
    return refusal


def _try(model: Any) -> None:
    last = model.config.get_text_config(decoder=True).vocab_size - 1
    prompts, stops = _prompts(last), frozenset({last})
    plain = _done("cannot be asked", lambda: torch.cat([_losses(model, ids) for ids in prompts]), _NotAsked)
    apart = _done("cannot be trained on packed records", lambda: _packed_losses(model, prompts))
    difference = float((apart - plain).abs().max())
    if not difference <= TOLERANCE:
        raise _Refused(
            f"does not compute packed records as it computes each alone (by up to {difference:.2g} nats a token): "
            "they read each other, or part of its attention is missing"
        )
    alone = _done("cannot be asked", lambda: [_answers(model, [ids], stops) for ids in prompts], _NotAsked)
    together = _done("cannot be asked in batches", lambda: _answers(model, prompts, stops))
    if together != [answer for answers in alone for answer in answers]:
        raise _Refused("answers otherwise in a batch than alone, so no score would be right")


def _done(what: str, act: Callable[[], Result], refused: type[_Refused] = _Refused) -> Result:
    try:
        return act()
    except Exception as fault:
        raise refused(f"{what} ({type(fault).__name__}: {fault})") from fault


def _answers(model: Any, prompts: list[list[int]], stops: frozenset[int]) -> list[GeneratedAnswer]:
    return generate(model, prompts, stops, NEW_TOKENS, len(prompts))


def _prompts(last: int) -> list[list[int]]:
    """Token ids below `last` with a shared start, shorter and longer than the small model's window."""
    numbers = torch.Generator().manual_seed(0)

    def drawn(count: int) -> list[int]:
        return torch.randint(0, last, (count,), generator=numbers).tolist()

    start = drawn(SHARED)
    return [start + drawn(rest) for rest in RESTS]


def _packed_losses(model: Any, prompts: list[list[int]]) -> torch.Tensor:
    """The losses of a training's pack, and a backward pass through them."""
    pack = collate([(ids, [IGNORED, *ids[1:]]) for ids in prompts])
    with attention.documents_apart(model):
        losses = pack_losses(model, pack)
    losses.sum().backward()  # type: ignore[no-untyped-call]
    return losses.detach()


def _losses(model: Any, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
        return torch.nn.functional.cross_entropy(logits.float(), torch.tensor(ids[1:]), reduction="none")
