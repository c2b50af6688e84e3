"""Measurements in, a Markdown table for people and a JSON file for machines out."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.speed.rounds import Measurement
from benchmarks.speed.rows import ALPACA, BANKING

ANSWERS = "answers"
OWN = {ALPACA: "ours", BANKING: "ours", ANSWERS: "our-answers"}
BUSY_PERCENT = 20.0


@dataclass(frozen=True)
class Spread:
    """Numbers of several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Median and range.

        >>> Spread.of([1.0, 4.0, 2.0])
        Spread(median=2.0, low=1.0, high=4.0)
        """
        return cls(statistics.median(values), min(values), max(values))

    def text(self, form: str) -> str:
        """`median (low to high)` in a number format; one number where all are the same."""
        whole = f"{self.median:{form}}"
        return whole if self.low == self.high else f"{whole} ({self.low:{form}} to {self.high:{form}})"


@dataclass(frozen=True)
class Goal:
    """A ratio that is aimed at: ours to the fastest of some contenders on the same rows."""

    name: str
    text: str
    against: tuple[str, ...]
    wanted: float


GOALS = (
    Goal(ALPACA, "training, times TRL's better mode", ("trl-packed", "trl-grouped"), 1.5),
    Goal(ALPACA, "training, times the guide", ("guide",), 2.3),
    Goal(BANKING, "training, times the guide", ("guide",), 8.0),
    Goal(ANSWERS, "evaluation, times the guide", ("guide-answers",), 8.0),
)
PEAK_WANTED = 0.65


@dataclass(frozen=True)
class Findings:
    """All measurements of one run, and what follows from them."""

    measured: Sequence[Measurement]

    def of(self, name: str, contender: str) -> list[Measurement]:
        """A contender's measurements on a set of rows, by round."""
        chosen = [one for one in self.measured if (one.name, one.contender) == (name, contender)]
        return sorted(chosen, key=lambda one: one.round)

    def entries(self) -> list[tuple[str, str]]:
        """Rows and contenders, in the order of the first round."""
        return list(dict.fromkeys((one.name, one.contender) for one in self.measured))

    def ratio(self, name: str, against: Sequence[str]) -> Spread | None:
        """Ours to the fastest of some contenders, round by round; None where one was not measured."""
        others = [self.of(name, contender) for contender in against]
        if not all(others):
            return None
        fastest = [max(one.speed for one in turn) for turn in zip(*others, strict=True)]
        own = self.of(name, OWN[name])
        return Spread.of([one.speed / other for one, other in zip(own, fastest, strict=True)])

    def share_of_peak(self) -> Spread:
        """Our operations a second in training, as a share of the matrix peak measured in the same process."""
        return Spread.of(
            [
                one.details["gflop"] / one.seconds / one.details["peak_gflop_per_second"]
                for one in self.of(ALPACA, "ours")
            ]
        )

    def answers(self) -> tuple[int, int]:
        """Greedy answers that are the same one by one and in batches, and how many were compared, over all rounds."""
        pairs = [
            (mine, theirs)
            for one, other in zip(self.of(ANSWERS, "our-answers"), self.of(ANSWERS, "guide-answers"), strict=True)
            for mine, theirs in zip(one.details["answers"], other.details["answers"], strict=False)
        ]
        return sum(mine == theirs for mine, theirs in pairs), len(pairs)


def machine() -> dict[str, Any]:
    """The processor, its cores and memory."""
    import psutil

    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "waiting": os.environ.get("OMP_WAIT_POLICY", "threads spin (the default)"),
    }


def table(findings: Findings, here: Mapping[str, Any], day: str) -> str:
    """The page for people."""
    versions = {key: value for one in findings.measured for key, value in one.details["versions"].items()}
    rounds = max(one.round for one in findings.measured)
    peak = Spread.of([one.details["peak_gflop_per_second"] for one in findings.of(ALPACA, "ours")])
    details = findings.of(ALPACA, "ours")[0].details
    lines = [
        f"# Speed, {day}",
        "",
        f"{here['cpu']}, {here['cores']} cores, {here['memory_gb']} GB, Python {here['python']}; "
        + ", ".join(f"{key} {value}" for key, value in versions.items())
        + f"; OMP_WAIT_POLICY: {here['waiting']}.",
        f"Rounds, alternating: {rounds}; medians, in brackets the lowest and the highest round. "
        f"How to read it: [README](../README.md).",
        "",
        *_warnings(findings),
        "| rows | contender | tokens/s | ours is … times it | real tokens | processed | with a label |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *(_line(findings, name, contender) for name, contender in findings.entries()),
        "",
        "| aimed at | wanted | measured | reached |",
        "| --- | ---: | ---: | --- |",
        *_goals(findings),
        "",
        f"Ours needs {details['gflop'] / details['processed']:.2f} GFLOP a token of {ALPACA}; "
        f"fp32 matrix peak {peak.text('.0f')} GFLOP/s.",
        "",
    ]
    return "\n".join(lines)


def _warnings(findings: Findings) -> list[str]:
    busy = [one for one in findings.measured if one.busy_percent >= BUSY_PERCENT]
    if not busy:
        return []
    return [
        f"**Not quiet: other processes used {BUSY_PERCENT:.0f} % or more of the processors before {len(busy)} of "
        f"{len(findings.measured)} measurements.**",
        "",
    ]


def _line(findings: Findings, name: str, contender: str) -> str:
    ones = findings.of(name, contender)
    speed = Spread.of([one.speed for one in ones]).text(".1f")
    ratio = findings.ratio(name, [contender]) if contender != OWN[name] else None
    last = ones[0].details
    counts = [f"{ones[0].tokens:,}", *(f"{last[key]:,}" if key in last else "" for key in ("processed", "labels"))]
    return f"| {name} | {contender} | {speed} | {ratio.text('.2f') if ratio else ''} | {' | '.join(counts)} |"


def _goals(findings: Findings) -> list[str]:
    lines = []
    for goal in GOALS:
        ratio = findings.ratio(goal.name, goal.against)
        if ratio:
            reached = "yes" if ratio.median >= goal.wanted else "no"
            lines.append(f"| {goal.name}: {goal.text} | {goal.wanted:g} | {ratio.text('.2f')} | {reached} |")
    share = findings.share_of_peak()
    reached = "yes" if share.median >= PEAK_WANTED else "no"
    lines.append(f"| {ALPACA}: share of the fp32 matrix peak | {PEAK_WANTED:.0%} | {share.text('.0%')} | {reached} |")
    same, compared = findings.answers()
    lines.append(f"| identical greedy answers | all | {same} of {compared} | {'yes' if same == compared else 'no'} |")
    return lines


def write(findings: Findings, told: Mapping[str, Any], folder: Path) -> str:
    """Write `<date>.json` and `<date>.md` and return the page."""
    folder.mkdir(parents=True, exist_ok=True)
    day, here = f"{datetime.now(UTC):%Y-%m-%d}", machine()
    page = table(findings, here, day)
    numbers = {"machine": here, "told": dict(told), "measured": [one.plain() for one in findings.measured]}
    (folder / f"{day}.md").write_text(page, "utf-8")
    (folder / f"{day}.json").write_text(json.dumps(numbers, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return page
