"""The `tuneline plan` command: a recipe in, a table of what each method would take on this machine out."""

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from flows.environment import choose_waiting, prepare_environment
from tasks.output.terminal import console
from tasks.steps.state import state

if TYPE_CHECKING:
    from tasks.planning.plan import Option, Plan

EPILOG = (
    "Example: [bold]tuneline plan recipes/quickstart.yaml --set training.batch_tokens=2048[/]\n\n"
    "Next: [bold]tuneline retrain RECIPE --set 'training.method={type: auto}'[/] takes the marked method, or write it "
    "into the recipe. Weights are neither loaded nor fetched."
)
PARTS = {"weights": "weights", "adapter": "adapter", "gradients": "grads", "optimiser": "AdamW"}
PARTS |= {"activations": "activ.", "logits": "logits", "runtime": "runtime"}


def plan(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, for example recipes/quickstart.yaml.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one key; may be repeated.")
    ] = None,
    timed: Annotated[bool, typer.Option(help="Probe the speed too, some seconds a method.")] = True,
) -> None:
    """Predict memory and time of each method on this machine, and say which is the best that fits."""
    from tasks.recipe.file import load_recipe

    told, here = load_recipe(recipe, overrides or ()), state()
    prepare_environment(here)
    choose_waiting(seconds=0.4)
    from flows.cli.logs import logged
    from tasks.planning.plan import plan as plan_methods

    with logged(here, "plan"):
        found = plan_methods(told, timed=timed)
    console().print(screen(found, told.training.method.type))


def screen(found: "Plan", own: str) -> RenderableType:
    """The table, its parts, and what to make of it; `own` is the recipe's method."""
    return Group(table(found, own), parts(found), Text(advice(found, own)))


def table(found: "Plan", own: str) -> Table:
    """Method, parameters, memory, verdict and time; the best is marked."""
    work, room = found.workload, gib(found.room)
    title = f"{found.base} on {found.device}: {room} GiB {'given by the recipe' if found.given else 'free'}"
    made = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    made.add_column("method", no_wrap=True)
    for name in ("moving parameters", "GiB", "time"):
        made.add_column(name, justify="right", no_wrap=True)
    made.add_column("fits", overflow="fold")
    for option in found.options:
        best = option is found.best
        name = f"{'▸ ' if best else '  '}{option.method.type}{' (the recipe’s)' if option.method.type == own else ''}"
        made.add_row(name, *cells(option), style="bold green" if best else "")
    lengths = "lengths from a sample of the records" if work.measured else "every token with a label: records not read"
    made.caption = f"Packs of {work.pack.tokens:,} tokens, {work.pack.labels:,} with a label; {lengths}."
    made.caption_justify = "left"
    return made


def cells(option: "Option") -> tuple[str, str, str, str]:
    """One row after the method's name."""
    if option.prediction is None:
        return "–", "–", "–", f"cannot run: {option.fault}"
    moving, whole = option.prediction.trainable_parameters, option.prediction.parameters
    spent = str(timedelta(seconds=round(option.seconds))) if option.seconds else "–"
    share = f"{moving:,} ({moving / whole:.2%})"
    return share, gib(option.prediction.memory.total), spent, "yes" if option.fits else "no"


def parts(found: "Plan") -> Table:
    """What the memory is made of, in GiB, at the fullest moment."""
    made = Table(
        title="GiB at the fullest moment", title_justify="left", title_style="dim", box=box.SIMPLE_HEAD, show_edge=False
    )
    made.add_column("method", no_wrap=True)
    for name in PARTS.values():
        made.add_column(name, justify="right", no_wrap=True)
    for option in found.options:
        if option.prediction is not None:
            made.add_row(option.method.type, *(gib(getattr(option.prediction.memory, name)) for name in PARTS))
    return made


def advice(found: "Plan", own: str) -> str:
    """What the choice would be, where the time comes from."""
    from tasks.planning.plan import MARGIN

    timed = any(option.seconds for option in found.options)
    source = "Time: one layer with random weights, trained here for a moment, times the counted operations. "
    if found.best is None:
        chosen = (
            "Nothing fits: lower training.batch_tokens and prompt.max_length, set compute.gradient_checkpointing, "
            "or take a smaller base."
        )
    else:
        chosen = f"The first in this order that leaves {MARGIN:.0%} free: {found.best.method.type}."
    return f"{source if timed else ''}{chosen}{'' if own != 'auto' else ' method: auto takes it.'}"


def gib(size: int) -> str:
    """Bytes as GiB.

    >>> gib(3 << 29)
    '1.50'
    """
    return f"{size / (1 << 30):.2f}"
