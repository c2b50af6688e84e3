"""Lengths in, optimiser steps out: which examples, in which packs, in which order; a function of the seed alone."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tasks.prompts import IGNORED

Examples = Sequence[tuple[list[int], list[int]]]


def read_examples(path: Path) -> Examples:
    """The (input_ids, labels) pairs of a tokenised split."""
    import pyarrow.parquet as pq

    table = pq.read_table(path, columns=["input_ids", "labels"])
    return list(zip(table["input_ids"].to_pylist(), table["labels"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Plan:
    """Every step of a training: `steps[i]` is the list of packs of step i, a pack is a list of example numbers."""

    steps: list[list[list[int]]]
    steps_per_epoch: int


def fill(order: Sequence[int], lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs in the given order, each filled until the next example has no room.

    A pack is one sequence without padding, so an unfilled rest costs nothing and the order stays random.

    >>> fill([0, 1, 2, 3], lengths=[5, 3, 4, 2], capacity=8)
    [[0, 1], [2, 3]]
    """
    packs: list[list[int]] = [[]]
    room = capacity
    for number in order:
        if lengths[number] > room and packs[-1]:
            packs.append([])
            room = capacity
        packs[-1].append(number)
        room -= lengths[number]
    return packs if packs[-1] else []


def plan(
    lengths: Sequence[int], capacity: int, accumulation: int, epochs: float, max_steps: int, seed: int, divisor: int = 1
) -> Plan:
    """Shuffle each epoch, cut it into steps of `accumulation` packs of `capacity` tokens.

    With `divisor` (after running out of memory) a pack is cut into that many smaller ones; a step's examples stay the
    same.

    >>> plan([4, 4, 4, 4], capacity=8, accumulation=1, epochs=1, max_steps=0, seed=0).steps_per_epoch
    2
    """
    numbers = list(range(len(lengths)))
    steps: list[list[list[int]]] = []
    per_epoch = 0
    epoch = 0
    while epoch < epochs:
        order = numbers.copy()
        random.Random(f"{seed}/{epoch}").shuffle(order)
        packs = fill(order, lengths, capacity)
        groups = [packs[start : start + accumulation] for start in range(0, len(packs), accumulation)]
        per_epoch = per_epoch or len(groups)
        share = min(1.0, epochs - epoch)
        steps += groups if share == 1.0 else groups[: max(1, round(share * len(groups)))]
        epoch += 1
        if max_steps and len(steps) >= max_steps:
            break
    steps = steps[:max_steps] if max_steps else steps
    if divisor > 1:
        steps = [[small for pack in step for small in fill(pack, lengths, capacity // divisor)] for step in steps]
    return Plan(steps, per_epoch)


@dataclass(frozen=True)
class Pack:
    """Examples in one sequence: ids and positions are (1, tokens), `keep` and `targets` (labels,).

    `keep` are the positions whose next token carries a label; only there are logits computed.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    document_ends: list[int]
    keep: torch.Tensor
    targets: torch.Tensor

    def to(self, device: torch.device) -> "Pack":
        """The same pack on a device."""
        tensors = (self.input_ids.to(device), self.position_ids.to(device))
        return Pack(*tensors, self.document_ends, self.keep.to(device), self.targets.to(device))


def collate(examples: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Pack:
    """Lay examples (ids, labels) end to end, each with its own positions.

    A label at a document's first token would be predicted from the document before, so it is not trained.
    """
    ids: list[int] = []
    positions: list[int] = []
    keep: list[int] = []
    targets: list[int] = []
    ends: list[int] = []
    for input_ids, labels in examples:
        start = len(ids)
        ids += input_ids
        positions += range(len(input_ids))
        for place in range(1, len(labels)):
            if labels[place] != IGNORED:
                keep.append(start + place - 1)
                targets.append(labels[place])
        ends.append(len(ids))
    return Pack(torch.tensor([ids]), torch.tensor([positions]), ends, torch.tensor(keep), torch.tensor(targets))
