"""Rows in, small real files and what the data step makes of them out."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tasks.artifacts import ValidatedDataset
from tasks.data.records import Record

Rows = list[dict[str, Any]]
TOPICS = ["river", "stone", "cloud", "maple", "harbour", "lantern", "violin", "orchard", "glacier", "meadow", "copper"]
TOPICS += ["saddle", "window", "ribbon", "anchor"]
VERBS = ["describe", "compare", "paint", "explain", "measure", "repair", "collect", "mention"]


def alpaca(count: int, start: int = 0) -> Rows:
    """Rows that no near-duplicate rule can take for each other."""
    rows = []
    for number in range(start, start + count):
        verb, topic, second = VERBS[number % 8], TOPICS[number // 8 % 15], TOPICS[number // 120 % 15]
        instruction = f"{verb} the {topic} beside a {second}: {hash_words(number)}"
        rows.append({"instruction": instruction, "input": "", "output": f"answer number {number}"})
    return rows


def hash_words(number: int) -> str:
    """A few letters that are different for every number."""
    return hashlib.sha256(str(number).encode()).hexdigest()[:24]


def write_lines(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


class Outcome(NamedTuple):
    noun: ValidatedDataset
    train: list[Record]
    validation: list[Record]
    test: list[Record]
    quarantine: Rows
    report: dict[str, Any]

    @property
    def everything(self) -> list[Record]:
        return self.train + self.validation + self.test

    def reasons(self) -> dict[str, str]:
        return {row["source"]: row["reason"] for row in self.quarantine}

    def record(self, source: str) -> Record:
        return next(record for record in self.everything if record.source == source)


Validate = Callable[..., Outcome]
