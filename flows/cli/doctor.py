"""What this machine can do: the running environment in, findings with a verdict and advice out."""

import importlib.metadata
import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer
from rich.table import Table

from flows.cli.servers import check_prefect
from flows.environment import answers, prefect_address, prepare_environment
from tasks.errors import ServiceUnavailable, StateUnusable
from tasks.output.credentials import without_credentials
from tasks.output.terminal import console
from tasks.project import ROOT
from tasks.registry import database, relocation
from tasks.steps.state import State, make_private, state
from tasks.steps.store import writable

EPILOG = (
    "Example: [bold]tuneline doctor[/]\n\nNext: put the advice into a recipe, for example "
    "[bold]--set compute.precision=fp32[/]. Exit code 1 means that something essential is broken."
)
Verdict = Literal["good", "note", "broken"]
SECONDS_A_FORMAT = 0.4
"""How long the matrix products of one number format are measured."""
MATRIX = 1024
GIB = 1024**3
TOO_NEW = {
    "fastapi": ((0, 151), "no Prefect 3.8 server starts with it; install fastapi<0.151"),
    "sqlalchemy": ((2, 1), "Prefect 3.8 schedules nothing with it; install sqlalchemy<2.1"),
}
NEEDED = (
    *TOO_NEW,
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "evaluate",
    "mlflow",
    "prefect",
    "pydantic",
)
CONSTRAINTS = ROOT / "constraints.txt"


class Finding(NamedTuple):
    """One thing looked at; a broken one keeps Tuneline from working here."""

    what: str
    found: str
    verdict: Verdict = "good"


def doctor(
    relocate: Annotated[
        bool, typer.Option("--relocate", help="Point a registry that was moved with its state folder at its files.")
    ] = False,
) -> None:
    """Check this machine: versions, memory, GPUs, number formats that are fast here, servers, state folder."""
    home = state()
    if relocate:
        prepare_environment(home)
        console().print(relocated(home), soft_wrap=True, highlight=False)
        return
    findings = examine(home)
    console().print(screen(findings))
    if any(finding.verdict == "broken" for finding in findings):
        raise typer.Exit(1)


def examine(state: State) -> list[Finding]:
    """Look at everything, a few seconds; a fault of one thing does not hide the others."""
    with suppress(StateUnusable):  # which disk() says
        prepare_environment(state)
    return [*versions(), *machine(), *disk(state), *devices(), *servers(state)]


def screen(findings: list[Finding]) -> Table:
    """The findings as a table."""
    table = Table(title="Tuneline on this machine", title_justify="left", title_style="bold", show_edge=False)
    for name in ("", "what"):
        table.add_column(name, no_wrap=True)
    table.add_column("found", overflow="fold")
    marks = {"good": "[green]✓[/]", "note": "[yellow]![/]", "broken": "[bold red]✗[/]"}
    for finding in findings:
        table.add_row(marks[finding.verdict], finding.what, finding.found)
    return table


def versions() -> Iterator[Finding]:
    """Python, and the packages that matter against the pins they were tested with."""
    supported = sys.version_info >= (3, 11)
    yield Finding("python", f"{platform.python_version()} in {sys.prefix}", "good" if supported else "broken")
    pins = pinned()
    found: list[str] = []
    for name in NEEDED:
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(name, "not installed; run make setup", "broken")
            continue
        pin = pins.get(name, version)
        found.append(f"{name} {version}")
        if name in TOO_NEW and tuple(map(int, version.split(".")[:2])) >= TOO_NEW[name][0]:
            yield Finding(name, f"{version}: {TOO_NEW[name][1]}", "broken")
        elif version.split("+")[0] != pin.split("+")[0]:
            yield Finding(name, f"{version}, tested with {pin}", "note")
    yield Finding("packages", ", ".join(found))


def pinned() -> dict[str, str]:
    """Name to version of constraints.txt; empty where the project is installed without it."""
    if not CONSTRAINTS.is_file():
        return {}
    pairs = (line.split("==") for line in CONSTRAINTS.read_text("utf-8").splitlines() if "==" in line)
    return {name.strip().lower(): version.strip() for name, version in pairs}


def machine() -> Iterator[Finding]:
    """Processors with the instructions that matter, and memory."""
    import psutil

    flags: set[str] = set()
    model = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text("utf-8")
        flags = set(re.findall(r"\b(avx2|avx512f|avx512_bf16|amx_bf16|amx_tile)\b", text))
        model = next(iter(re.findall(r"model name\s*:\s*(.+)", text)), model)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("processor", f"{usable} cores, {model}; {' '.join(sorted(flags)) or 'no AVX2'}")
    memory = psutil.virtual_memory()
    found = f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} free"
    small = memory.available < 3 * GIB
    yield Finding("memory", f"{found}{'; the quickstart needs about 3' if small else ''}", "note" if small else "good")


def disk(state: State) -> Iterator[Finding]:
    """Whether the state folder can be written, and how much room it has."""
    probe = state.root / f".doctor-{os.getpid()}"
    try:
        make_private(state.root)
        with writable(state.root):
            probe.write_text("ok", "utf-8")
            probe.unlink()
    except (OSError, StateUnusable) as fault:
        yield Finding("state folder", str(fault), "broken")
        return
    free = shutil.disk_usage(state.root).free / GIB
    advice = "; the quickstart needs about 5" if free < 5 else ""
    yield Finding("state folder", f"{state.root}, {free:.1f} GiB free{advice}", "note" if advice else "good")


def devices() -> Iterator[Finding]:
    """GPUs, or how fast each number format is on the processor, and which methods can run."""
    try:
        import torch
    except ImportError as fault:
        yield Finding("torch", f"does not import: {fault}", "broken")
        return
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if card.major >= 8 else "no bf16, use fp16"
        yield Finding(f"GPU {index}", f"{card.name}, {card.total_memory / GIB:.0f} GiB, {bf16}")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        yield Finding("GPU", "none; training and generation run on the processor", "note")
    speeds = {name: matmul_speed(name, device) for name in ("fp32", "bf16", "fp16")}
    best = max(speeds, key=lambda name: speeds[name])
    gain = speeds[best] / speeds["fp32"]
    # A narrower format costs accuracy: it has to be clearly faster to be worth a try.
    advice = "Use fp32." if gain < 1.2 else f"{best} is {gain:.1f} × as fast as fp32: try compute.precision={best}."
    measured = ", ".join(f"{name} {speed:,.0f}" for name, speed in speeds.items())
    yield Finding("matrix products", f"GFLOP/s on {device}: {measured}. {advice}")
    yield runnable_methods(device)


def runnable_methods(device: str) -> Finding:
    """Which fine-tuning methods can run here, and why the others cannot."""
    from typing import get_args

    from tasks.recipe.methods import Method

    union, _ = get_args(Method)
    kinds = [kind.model_fields["type"].default for kind in get_args(union)]
    quantised = [kind.model_fields["type"].default for kind in get_args(union) if kind().quantisation]
    if fault := _without_bitsandbytes():
        able = ", ".join(kind for kind in kinds if kind not in quantised)
        return Finding("methods", f"{able}; not {' and '.join(quantised)}: {fault}", "note")
    slow = f"; {' and '.join(quantised)} save memory here and cost time" if device == "cpu" else ""
    return Finding("methods", f"{', '.join(kinds)}{slow}; `tuneline plan` says what fits")


def _without_bitsandbytes() -> str:
    """Why no base can be quantised here; empty where it can."""
    if find_spec("bitsandbytes") is None:
        return "bitsandbytes is not installed (pip install bitsandbytes)"
    try:
        from bitsandbytes.cextension import ErrorHandlerMockBNBNativeLibrary, lib
    except (ImportError, OSError, RuntimeError) as fault:
        return f"bitsandbytes does not import: {fault}"
    if isinstance(lib, ErrorHandlerMockBNBNativeLibrary):
        return "bitsandbytes has no native library for this machine"
    return ""


def matmul_speed(name: str, device: str) -> float:
    """Measured billions of operations a second of a square matrix product in one number format."""
    import torch

    kinds = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    left = torch.randn(MATRIX, MATRIX, device=device).to(kinds[name])
    right = left.T.contiguous()
    wait: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    left @ right
    wait()
    count, started, seconds = 0, time.perf_counter(), 0.0
    while seconds < SECONDS_A_FORMAT:
        left @ right
        wait()
        count, seconds = count + 1, time.perf_counter() - started
    return 2 * MATRIX**3 * count / seconds / 1e9


def servers(state: State) -> Iterator[Finding]:
    """Which Prefect and which MLflow this state uses, and whether they answer."""
    address = os.environ.get("PREFECT_API_URL", "")
    if not address:
        yield Finding("Prefect", f"a temporary server for each command, history in {state.prefect_home}")
    else:
        whose = "the server of tuneline ui" if address == prefect_address(state) else "answers"
        yield prefect_server(f"{without_credentials(address)}, {whose}")
    if database.is_server(state.tracking_uri):
        yield reachable("MLflow", state.tracking_uri, "/health")
    elif fault := relocation.moved(state.tracking_uri):
        yield Finding("MLflow", fault, "broken")
    else:
        yield Finding("MLflow", f"{without_credentials(state.tracking_uri)}, artifacts in {state.artifacts}")


def prefect_server(found: str) -> Finding:
    """Whether the Prefect server of PREFECT_API_URL answers this process."""
    try:
        check_prefect()
    except ServiceUnavailable as fault:
        return Finding("Prefect", str(fault), "broken")
    return Finding("Prefect", found)


def relocated(state: State) -> str:
    """Point a registry that was moved at its files; what was done, in words. Raises StateUnusable."""
    done = relocation.relocate(state.tracking_uri)
    if done is None:
        return f"Nothing to relocate: the registry in {state.root} names its own files."
    changed = ", ".join(f"{table} {count}" for table, count in done.rows.items())
    whole = done.versions - len(done.missing)
    lost = f"; gone, as they were before: {', '.join(done.missing)}" if done.missing else ""
    return (
        f"The registry was made in {done.old} and is now in {done.new}.\n"
        f"Rows that name the new place: {changed}. {whole} of {done.versions} versions have their files{lost}.\n"
        f"The database as it was: {done.backup}"
    )


def reachable(what: str, address: str, health: str) -> Finding:
    """Whether a configured server answers 200 on its health address."""
    from urllib.parse import urlsplit

    parts, address = urlsplit(address), without_credentials(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    if answers(port, health, seconds=3, host=parts.hostname or "", secure=parts.scheme == "https"):
        return Finding(what, f"{address} answers")
    return Finding(what, f"{address} does not answer; start it, or unset its variable to work without", "broken")
