"""How the learning rate rises and falls over a training."""

import math

from tasks.recipe.stages import Schedule


def learning_rate(step: int, steps: int, warmup_ratio: float, schedule: Schedule) -> float:
    """The share of the highest learning rate at a step (0-based).

    >>> [learning_rate(step, 10, 0.2, Schedule.linear) for step in (0, 1, 2, 6)]
    [0.5, 1.0, 1.0, 0.5]
    """
    warmup = math.ceil(warmup_ratio * steps)
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    if schedule is Schedule.constant:
        return 1.0
    return 1.0 - done if schedule is Schedule.linear else 0.5 * (1.0 + math.cos(math.pi * done))
