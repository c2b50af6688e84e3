"""Measurements in, a Markdown table for people and a JSON file for machines out."""

import json
import platform
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from benchmarks.gpu.trainings import Load, Measured

GIB = 1 << 30
INTRODUCTION = """\
Random weights, {load.steps} steps, packs of {load.tokens:,} tokens in documents of {load.document}, half with a label,
{checkpointing} gradient checkpointing. Weights that move are in fp32, products in the format that is fast there.
Memory is the peak {kind}; speed is the median of the steps. Made by
`python -m benchmarks.gpu` with {made_with}.
"""
PACKAGES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")


@dataclass(frozen=True)
class Results:
    """What was measured with one load on one device, and the versions that it was measured with."""

    device: str
    packages: dict[str, str]
    load: Load
    measured: list[Measured]

    @classmethod
    def read(cls, path: Path) -> "Results":
        """The results of a JSON file that `write` wrote."""
        return TypeAdapter(cls).validate_json(path.read_bytes())

    def write(self, path: Path) -> None:
        """Write the JSON file, and beside it the page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"device": self.device, "packages": self.packages, "load": vars(self.load)}
        content["measured"] = [one.plain() for one in self.measured]
        path.with_suffix(".md").write_text(f"# Methods on {self.device}\n\n{self.tables()}", "utf-8")
        path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")

    def tables(self) -> str:
        """The measurements and the merges, each with what it says."""
        load = self.load
        checkpointing = "with" if load.checkpointing else "without"
        kind = "resident memory of the training process" if self.device == processor() else "allocated on the GPU"
        made_with = ", ".join(f"{name} {found}" for name, found in self.packages.items())
        lines = [
            INTRODUCTION.format(load=load, checkpointing=checkpointing, kind=kind, made_with=made_with),
            "| shape | method | parameters | moving | predicted GiB | measured GiB | error | tokens/s |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
            *map(row, self.measured),
        ]
        if merges := [line for one in self.measured for line in merge_rows(one)]:
            lines += [
                "",
                "Merging the QLoRA adapter, against base plus adapter as trained; KL in nats a token:",
                "",
                "| shape | base of the merge | mean KL | max KL | top-1 agreement | equal answers |",
                "| --- | --- | ---: | ---: | ---: | ---: |",
                *merges,
            ]
        return "\n".join(lines) + "\n"


def file_of_today(folder: Path) -> Path:
    """Where results of today lie."""
    return folder / f"gpu-{datetime.now(UTC):%Y-%m-%d}.json"


def so_far(load: Load, folder: Path) -> Results:
    """What was measured today with this load, these packages and this device: a GPU may be at hand in pieces."""
    nothing, path = Results(device_name(), packages(), load, []), file_of_today(folder)
    if not path.exists():
        return nothing
    found = Results.read(path)
    return found if replace(found, measured=[]) == nothing else nothing


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

    return torch.cuda.get_device_name() if torch.cuda.is_available() else processor()


def processor() -> str:
    """What a device without a GPU is called."""
    return f"{platform.machine()} processor"
