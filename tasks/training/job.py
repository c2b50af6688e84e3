"""What the training process is told: one JSON file in its folder; everything it needs and nothing else."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.recipe.stages import ComputeRecipe, TrainingRecipe

JOB = "job.json"


class TrainingJob(BaseModel):
    """A training, completely: the same job gives the same weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path
    base: Path
    base_name: str
    trust_remote_code: bool
    train: Path
    validation: Path
    tokenizer: Path
    recipe: TrainingRecipe
    compute: ComputeRecipe = ComputeRecipe()
    seed: int
    origin: dict[str, Any]
    """What the weights are bound to: base (digest, name, revision, quantisation), tokenizer, template, system."""
    base_digest: str = ""
    """What the base's files have to hold before and after they are loaded; empty where nobody asks (benchmarks)."""
    data_digests: tuple[str, str] | None = None
    """What `train` and `validation` have to hold when they were read."""
    micro_batch_divisor: int = 1
    """Raised after running out of memory: packs of batch_tokens / divisor, with the same examples a step."""
    learning_rate_scale: float = 1.0
    """Halved after a diverged training."""
    parent: int = 0
    """Process to watch: when it ends, the worker writes a checkpoint and ends too. 0 means none."""
