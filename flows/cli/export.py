"""The `tuneline export` command: a registered version in, a folder of safetensors for any other program out."""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from flows.environment import prepare_environment
from tasks.errors import WorkRefused
from tasks.output.terminal import console
from tasks.steps.state import state

if TYPE_CHECKING:
    from tasks.modeling.exporting import Exported
    from tasks.steps.state import State

FORMATS = ("fp32", "bf16", "fp16")
SIZE = re.compile(r"\d+(\.\d+)?(KB|MB|GB|TB)", re.IGNORECASE)
EPILOG = (
    "Example: [bold]tuneline export support-desk ./support-desk --dtype bf16 --shard-size 2GB[/]\n\n"
    "Next: load the folder with transformers, or with any program that reads its format."
)


def export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Registered model, for example support-desk.")],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder to make; a new or an empty one.")],
    alias: Annotated[str, typer.Option("--alias", help="production, staging, candidate or previous.")] = "production",
    version: Annotated[int, typer.Option("--version", min=0, help="Version; 0 means the alias's.")] = 0,
    dtype: Annotated[str, typer.Option("--dtype", help="fp32, bf16 or fp16.")] = "fp32",
    shard_size: Annotated[str, typer.Option("--shard-size", help="Largest file, such as 500MB or 2GB.")] = "2GB",
) -> None:
    """Write a registered model as safetensors, and check that transformers alone loads and answers with it."""
    if dtype not in FORMATS:
        raise typer.BadParameter(f"--dtype {dtype}: allowed are {', '.join(FORMATS)}")
    if not SIZE.fullmatch(shard_size):
        raise typer.BadParameter(f"--shard-size {shard_size}: write a number and KB, MB, GB or TB, such as 2GB")
    here = state()
    prepare_environment(here)
    from flows.cli.logs import logged

    with logged(here, "export"):
        done = export_version(name, folder.absolute(), alias, version, dtype, shard_size.upper(), here)
    console().print(summary(done), soft_wrap=True, highlight=False)


def export_version(
    name: str, folder: Path, alias: str, version: int, dtype: str, shard_size: str, here: "State"
) -> "Exported":
    """Export a version by its number or, for 0, by an alias.

    Raises UnknownVersion, WorkRefused for a version that is an adapter, and what `exporting.export` raises.
    """
    from tasks.modeling import exporting
    from tasks.modeling.origin import origin_of
    from tasks.promotion.evidence import evidence_for
    from tasks.registry import contents, lookup, versions
    from tasks.registry.lookup import get_version

    uri = here.tracking_uri
    found = get_version(name, version, uri) if version else lookup.get_by_alias(uri, name, alias)
    whole = versions.checked_folder(uri, name, found.version, here.root / "cache")
    files = {path.name: path for path in (whole / "artifacts").glob("*") if path.is_file()}
    source = contents.weights_in(whole)
    if found.tags.get("kind") == "adapter":
        raise WorkRefused(f"export: {name}/{found.version} {_why_adapter(found, files)}")
    system = origin_of(source).get("system", "")
    first = [{"role": "system", "content": system}] if system else []
    asked = [[*first, *row["messages"]] for row in evidence_for(name, found.version, here).questions]
    extra = {key: path for key, path in files.items() if key in ("MODEL_CARD.md", "release.json")}
    return exporting.export(source, folder, dtype, shard_size, extra, asked)


def _why_adapter(found: Any, files: dict[str, Path]) -> str:
    """What an adapter version is told: which version holds the merged model, or why there is none."""
    if merged := found.tags.get("merged"):
        return f"is an adapter; {merged} is the model that it is folded into: export that one."
    release = json.loads(files["release.json"].read_text("utf-8")) if "release.json" in files else {}
    reason = release.get("merge", {}).get("reason") or "it was not folded into its base"
    return f"is an adapter, and stays one: {reason}. Load it with PEFT on its base."


def summary(done: "Exported") -> str:
    """What lies where, and how it answered."""
    return (
        f"{done.folder}: {done.bytes / 1e6:,.1f} MB of {done.dtype} in {done.shards} "
        f"file{'s' if done.shards > 1 else ''}.\n"
        f"transformers alone loads it and answers; of {done.prompts} greedy answers {done.equal_answers} "
        f"equal the registered version's, {done.equal_tokens:.1%} of the tokens up to the first difference."
        + _system_message(done.folder)
    )


def _system_message(folder: Path) -> str:
    """What the folder's template does not send by itself; empty where the model was trained without it."""
    from tasks.modeling.origin import ORIGIN, origin_of

    system = origin_of(folder).get("system", "") if (folder / ORIGIN).is_file() else ""
    said = escape(json.dumps(system, ensure_ascii=False))
    return f"\nIts template does not hold the recipe's system message; send it first: {said}" if system else ""
