"""A recipe in, what each method would take on this machine out, and the best that fits: full, then LoRA, 8-bit LoRA,
QLoRA, prompt tuning.

Memory is predicted from the base's `config.json` and a sample of the records; weights are neither loaded nor fetched.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tasks.artifacts import TokenizedDataset, TrainedWeights
from tasks.data.main_memory import free_main_memory
from tasks.errors import InvalidBaseModel, InvalidRecipe
from tasks.planning.workload import Workload, workload
from tasks.recipe.methods import (
    AutoMethod,
    CombineMethod,
    EightBitLoraMethod,
    FullMethod,
    LoraMethod,
    Method,
    PromptTuningMethod,
    QLoraMethod,
)
from tasks.recipe.stages import Recipe, Strategy

if TYPE_CHECKING:
    from tasks.modeling.memory import PackSize, Prediction
    from tasks.registry.runs import Point

IN_ORDER = (FullMethod, LoraMethod, EightBitLoraMethod, QLoraMethod, PromptTuningMethod)
MARGIN = 0.1
"""Share of the memory that a choice leaves free: a prediction is not a measurement."""
GIB = 1 << 30
log = logging.getLogger("tuneline")


@dataclass(frozen=True)
class Option:
    """One method: what it takes and whether it fits; `fault` says why it cannot run at all."""

    method: Method
    prediction: "Prediction | None" = None
    fits: bool = False
    seconds: float = 0.0
    """Of the whole training, from a probe; 0 where nothing was probed."""
    fault: str = ""


@dataclass(frozen=True)
class Plan:
    """What was predicted for a recipe on a machine; memory in bytes."""

    base: str
    device: str
    room: int
    """What training may take, before the margin."""
    given: bool
    """Whether the recipe says so; otherwise it is what was free."""
    workload: Workload
    options: tuple[Option, ...]

    @property
    def best(self) -> Option | None:
        """The first option that fits with the margin."""
        return next((option for option in self.options if option.fits), None)


def plan(recipe: Recipe, timed: bool = False, stop: bool = False) -> Plan:
    """Predict every method for a recipe; its own method stands in its place with its own options.

    `timed` probes the speed too, some seconds a method. `stop` ends at the first that fits.
    Raises InvalidBaseModel where the base's config cannot be had or walked through, ServiceUnavailable.
    """
    from tasks.files.model_files import CONFIG, json_object
    from tasks.modeling.methods import device
    from tasks.models import described
    from tasks.steps.state import state

    folder = described(recipe.base, state())
    config = json_object(folder / CONFIG)
    work = workload(recipe, folder)
    method = recipe.training.method
    given = method.memory_gib if isinstance(method, AutoMethod) else 0.0
    room = round(given * GIB) or free_memory()
    options: list[Option] = []
    for option in _options(recipe, config, work, room):
        options.append(_timed(option, recipe, config, work, room) if timed else option)
        if stop and option.fits:
            break
    return Plan(recipe.base.model, device().type, room, bool(given), work, tuple(options))


def choose(found: Plan) -> Method:
    """The best method that fits. Raises InvalidRecipe, with what each would take, where none does."""
    if best := found.best:
        return best.method
    rows = "\n".join(f"  {option.method.type}: {_said(option)}" for option in found.options)
    raise InvalidRecipe(
        f"training.method auto: nothing fits into {found.room / GIB:.2f} GiB "
        f"({'training.method.memory_gib' if found.given else 'free now'}) with {MARGIN:.0%} left:\n{rows}\n"
        "Lower training.batch_tokens and prompt.max_length, set compute.gradient_checkpointing, or take a smaller base."
    )


def resolve_auto(recipe: Recipe) -> Recipe:
    """The recipe with `method: auto` replaced by the choice, which is logged; any other recipe as it is.

    The chosen method has its own default options. Raises InvalidRecipe where none fits.
    """
    if not isinstance(recipe.training.method, AutoMethod):
        return recipe
    found = plan(recipe, stop=True)
    method = choose(found)
    log.info("plan: %s on %s: %s", method.type, found.device, "; ".join(map(_told, found.options)))
    return _with_method(recipe, method)


def free_memory() -> int:
    """Bytes that a new process can have now: of the GPU, or of main memory within the container's limit."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return free_main_memory()


def _options(recipe: Recipe, config: dict[str, Any], work: Workload, room: int) -> Iterator[Option]:
    own = recipe.training.method
    known = [own if isinstance(own, kind) else kind() for kind in IN_ORDER]
    for method in known if isinstance(own, (*IN_ORDER, AutoMethod, CombineMethod)) else [own, *known]:
        try:
            prediction = _predicted(_with_method(recipe, method), config, work.pack)
        except InvalidRecipe as fault:
            yield Option(method, fault=str(fault))
            continue
        yield Option(method, prediction, fits=prediction.memory.total <= (1 - MARGIN) * room)


def _with_method(recipe: Recipe, method: Method) -> Recipe:
    values = recipe.model_dump()
    values["training"]["method"] = method.model_dump()
    try:
        return Recipe.model_validate(values)
    except ValidationError as fault:
        raise InvalidRecipe("; ".join(str(error["msg"]) for error in fault.errors())) from fault


def _predicted(recipe: Recipe, config: dict[str, Any], pack: "PackSize") -> "Prediction":
    from importlib.util import find_spec

    import torch

    from tasks.modeling import memory, methods

    method = recipe.training.method
    if method.quantisation and find_spec("bitsandbytes") is None:
        raise InvalidRecipe("needs the package bitsandbytes, which is not installed")
    where = methods.device()
    bf16 = where.type == "cpu" or torch.cuda.get_device_capability(where)[0] >= 8
    return memory.predict(config, method, recipe.compute, pack, where.type, bf16)


def _timed(option: Option, recipe: Recipe, config: dict[str, Any], work: Workload, room: int) -> Option:
    """The option with the time of the whole training; one layer of the base has to fit, with room to spare."""
    from dataclasses import replace

    from tasks.modeling import probe

    if option.prediction is None or not work.packs or probe.bytes_of_a_layer(config) > room / 4:
        return option
    operations = option.prediction.operations * work.packs
    return replace(option, seconds=operations / probe.speed(config, option.method, recipe.compute))


def memory_points(recipe: Recipe, base: Path, tokenized: TokenizedDataset, weights: TrainedWeights) -> "list[Point]":
    """Prediction against outcome, in bytes, and the error as a share: for MLflow, with the training's own time.

    Empty where nothing was measured, and for what is not predicted: combined adapters, states that are shared out among
    processes, and bases that cannot be walked through.
    """
    from tasks.files.model_files import CONFIG, json_object
    from tasks.modeling.memory import PackSize
    from tasks.registry.runs import Point

    method = recipe.training.method
    shared_out = recipe.compute.strategy is not Strategy.replicated
    if isinstance(method, CombineMethod) or shared_out or not weights.peak_memory:
        return []
    tokens = min(recipe.training.batch_tokens, tokenized.tokens["train"])
    share = tokenized.trained_tokens["train"] / tokenized.tokens["train"]
    mean = tokenized.tokens["train"] / tokenized.rows["train"]
    pack = PackSize(tokens, round(share * tokens), max(1, round(tokens / mean)))
    config = json_object(base / CONFIG)
    try:
        predicted = _predicted(recipe, config, pack).memory.total
    except InvalidBaseModel as fault:
        log.info("plan: no prediction to compare with. %s", fault)
        return []
    when = int(weights.path("summary.json").stat().st_mtime * 1000)
    values = {
        "predicted_memory": float(predicted),
        "measured_memory": float(weights.peak_memory),
        "error": predicted / weights.peak_memory - 1,
    }
    return [Point(f"plan/{name}", value, weights.steps, when) for name, value in values.items()]


def _said(option: Option) -> str:
    return f"{option.prediction.memory.total / GIB:.2f} GiB" if option.prediction else option.fault


def _told(option: Option) -> str:
    return f"{option.method.type} {_said(option)}{', fits' if option.fits else ''}"
