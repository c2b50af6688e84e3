"""What a training leaves for the process that started it: its summary, and what the next try has to know of the last.

Nothing here imports torch.
"""

import logging
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from tasks.files.durable import read
from tasks.steps.store import file_digest

SUMMARY = "summary.json"
ATTEMPTS = "attempts.json"
WEIGHTS = "weights"
log = logging.getLogger("tuneline")


class Summary(BaseModel):
    """A training that is done; written after its weights are on the disk."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    tokens: int
    seconds: float
    best_step: int
    best_loss: float | None
    stopped_early: bool
    final_loss: float
    trainable_parameters: int
    peak_memory: int
    files: dict[str, str] = Field(description="sha256 of each file of the weights' folder.")


class Attempt(BaseModel):
    """What the next try does differently, learned from those before."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    micro_batch_divisor: int = Field(1, ge=1)
    learning_rate_scale: float = Field(1.0, gt=0)
    diverged_from: int | None = Field(None, ge=0, description="Step from which a try set out that diverged later.")
    killed_at: int | None = Field(None, ge=0, description="Newest step in the log when the system killed a try.")


def finished(folder: Path) -> Summary | None:
    """The summary of a training whose weights are all there; otherwise None, and the training goes on."""
    summary = read(folder / SUMMARY, Summary)
    for name, digest in summary.files.items() if summary else ():
        path = folder / WEIGHTS / name
        if not path.is_file() or file_digest(path) != digest:
            log.warning("%s: not the file that the training wrote; it is made again from the last checkpoint", path)
            return None
    return summary


def weights_files(folder: Path) -> dict[str, str]:
    """sha256 of every file of a training's weights, by its path below their folder."""
    paths = sorted(path for path in (folder / WEIGHTS).rglob("*") if path.is_file())
    return {path.relative_to(folder / WEIGHTS).as_posix(): file_digest(path) for path in paths}


def step_folder(folder: Path, step: int) -> Path:
    """Where what belongs to a step lies, in a folder of steps."""
    return folder / f"step-{step:08d}"
