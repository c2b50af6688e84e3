"""How the processes of one training share its work: a strategy's name in, its implementation out."""

import os

import torch

from tasks.recipe.stages import Strategy
from tasks.training.strategies import Fsdp2, Replicated


def select_device() -> None:
    """Make this process's GPU the current one, before anything is put on one."""
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))


def start(strategy: Strategy, precision: str) -> "Replicated":
    """The strategy for this process; `precision` is no, bf16 or fp16."""
    match strategy:
        case Strategy.replicated:
            return Replicated(precision)
        case Strategy.fsdp2:
            return Fsdp2(precision)
        case Strategy.zero2 | Strategy.zero3:
            from tasks.training.zero import Zero

            return Zero(precision, strategy)
