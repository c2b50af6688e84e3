"""Measurements in, a Markdown table for people and a JSON file for machines out."""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.gpu.trainings import Load, Measured

GIB = 1 << 30
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")


def write(measured: Sequence[Measured], load: Load, told: Mapping[str, Any], folder: Path) -> str:
    """Write `gpu-<date>.md` and `gpu-<date>.json`; the page's text."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"gpu-{datetime.now(UTC):%Y-%m-%d}"
    page = text(measured, load)
    (folder / f"{name}.md").write_text(page, "utf-8")
    content: dict[str, Any] = {"device": device_name(), "packages": packages(), "told": dict(told), "load": vars(load)}
    content["measured"] = [one.plain() for one in measured]
    (folder / f"{name}.json").write_text(json.dumps(content, indent=1, default=str) + "\n", "utf-8")
    return page


def text(measured: Sequence[Measured], load: Load) -> str:
    """The page."""
    checkpointing = "with" if load.checkpointing else "without"
    kind = "allocated on the GPU" if _gpu() else "resident memory of the training process"
    made_with = ", ".join(f"{name} {found}" for name, found in packages().items())
    lines = [
        f"# Methods on {device_name()}",
        "",
        f"Random weights, {load.steps} steps, packs of {load.tokens:,} tokens in documents of {load.document}, half",
        f"with a label, {checkpointing} gradient checkpointing. Memory is the peak {kind}; speed is the median of the",
        f"steps. Made by `python -m benchmarks.gpu` with {made_with}.",
        "",
        "| shape | method | parameters | moving | predicted GiB | measured GiB | error | tokens/s |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        *map(row, measured),
    ]
    if merges := [line for one in measured for line in merge_rows(one)]:
        lines += [
            "",
            "## Merging the QLoRA adapter",
            "",
            "Against base plus adapter as trained; KL in nats a token.",
            "",
        ]
        lines += ["| shape | base of the merge | mean KL | max KL | top-1 agreement | equal answers |"]
        lines += ["| --- | --- | ---: | ---: | ---: | ---: |", *merges]
    return "\n".join(lines) + "\n"


def row(one: Measured) -> str:
    """One method on one shape."""
    head = f"| {one.shape} | {one.method} | {one.parameters:,} | {one.trainable_parameters:,} "
    predicted = f"| {one.predicted.total / GIB:.2f} "
    if one.fault:
        return f"{head}{predicted}| – | – | {one.fault} |"
    error = one.predicted.total / one.peak - 1
    return f"{head}{predicted}| {one.peak / GIB:.2f} | {error:+.1%} | {one.tokens_per_second:,.0f} |"


def merge_rows(one: Measured) -> list[str]:
    """One line a rule."""
    return [
        f"| {one.shape} | {rule} | {parity.mean_kl:.1e} | {parity.max_kl:.1e} | {parity.top1_agreement:.3f} "
        f"| {parity.answer_agreement:.0%} |"
        for rule, parity in one.parities.items()
    ]


def packages() -> dict[str, str]:
    """Versions of what is measured."""
    return {name: version(name) for name in PACKAGES}


def device_name() -> str:
    """The GPU's name, or the processor's."""
    import torch

    return torch.cuda.get_device_name() if _gpu() else f"{platform.machine()} processor"


def _gpu() -> bool:
    import torch

    return bool(torch.cuda.is_available())
