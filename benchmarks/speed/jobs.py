"""What one contender is told, written to a file and read back; standard library only, for TRL's environment too."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.speed.rows import Row

LORA: dict[str, Any] = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
LEARNING_RATE = 2e-4
PADDED = 512
"""Tokens that the guide pads each row to; only rows that fit are measured."""
NEW_TOKENS = 24
"""Tokens that an answer has at most."""


@dataclass(frozen=True)
class Job:
    """One contender, its rows and the base; `tokens` are the rows' real tokens, counted once for all contenders."""

    contender: str
    rows: list[Row]
    tokens: int
    base: Path
    threads: int
    pack_tokens: int

    def write(self, path: Path) -> None:
        """Write the job as JSON."""
        path.write_text(json.dumps(asdict(self) | {"base": str(self.base)}), "utf-8")

    @classmethod
    def read(cls, path: Path) -> "Job":
        """The job of a file."""
        told = json.loads(path.read_text("utf-8"))
        return cls(**(told | {"base": Path(told["base"])}))
