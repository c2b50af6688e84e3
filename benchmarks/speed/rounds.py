"""A plan of contenders in, one measurement a contender and round out; each in a process of its own, one at a time."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.speed.jobs import Job
from tasks.project import ROOT
from tasks.training.processes import KEEPS_MEMORY

TRL = ROOT / ".venv-bench"
TRL_READY = TRL / ".ready"
TRL_PACKAGES = ("torch==2.13.0", "trl==1.16.*", "transformers", "peft", "accelerate", "datasets")
Run = Callable[[Job], dict[str, Any]]


@dataclass(frozen=True)
class Entry:
    """One contender on one set of rows: what is measured once a round."""

    name: str
    job: Job


@dataclass(frozen=True)
class Measurement:
    """What one contender did in one round; `details` are the contender's own numbers."""

    name: str
    contender: str
    round: int
    tokens: int
    seconds: float
    busy_percent: float
    """How busy the processors were with other work just before."""
    details: dict[str, Any] = field(repr=False)

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"tokens_per_second": self.speed}


def run_apart(job: Job) -> dict[str, Any]:
    """One contender in its process; all get the same environment, ours with what the verb adds for its worker too.

    Ends the run with the tail of what it said.
    """
    theirs = job.contender.startswith("trl")
    python, module = (str(TRL / "bin" / "python"), "trl_sft") if theirs else (sys.executable, "contenders")
    variables = os.environ | {
        "OMP_NUM_THREADS": str(job.threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(ROOT),
        **(KEEPS_MEMORY if job.contender == "ours" else {}),
    }
    with tempfile.TemporaryDirectory() as place:
        told, out = Path(place, "job.json"), Path(place, "out.json")
        job.write(told)
        command = [python, "-m", f"benchmarks.speed.{module}", str(told), str(out)]
        done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{job.contender} failed, exit code {done.returncode}:\n{done.stderr[-3000:]}")
        return dict(json.loads(out.read_text("utf-8")))


def busy_percent() -> float:
    """Share of all processors that other processes use now, over a third of a second."""
    import psutil

    return float(psutil.cpu_percent(interval=0.3))


def measure(plan: Sequence[Entry], rounds: int, run: Run = run_apart) -> Iterator[Measurement]:
    """Run the plan `rounds` times, each round beginning one contender later, and say what runs and how long still."""
    order = [(turn, plan[(turn + place) % len(plan)]) for turn in range(rounds) for place in range(len(plan))]
    took: dict[tuple[str, str], float] = {}
    for number, (turn, entry) in enumerate(order, start=1):
        name, contender = entry.name, entry.job.contender
        head = f"[{number}/{len(order)}] round {turn + 1}: {name}, {contender}"
        print(f"{head} ...", flush=True)
        busy = busy_percent()
        started = time.perf_counter()
        found = run(entry.job)
        took[name, contender] = time.perf_counter() - started
        made = Measurement(name, contender, turn + 1, found.pop("tokens"), found.pop("seconds"), busy, found)
        usual = sum(took.values()) / len(took)
        left = sum(took.get((later.name, later.job.contender), usual) for _, later in order[number:])
        done = f"{made.speed:.1f} tokens/s, {took[name, contender]:.0f} s with loading"
        print(f"{head}: {done}; about {left / 60:.0f} min left", flush=True)
        yield made


def make_trl() -> None:
    """TRL's own environment, once: what it pins is not ours to impose."""
    if TRL_READY.exists():
        return
    print(f"making {TRL.name} with TRL 1.16, about 4 minutes the first time, 2 GB", flush=True)
    subprocess.run([sys.executable, "-m", "venv", str(TRL)], check=True)
    pip = [str(TRL / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), *TRL_PACKAGES], check=False)
    if done.returncode:
        raise SystemExit("TRL could not be installed; `python -m benchmarks.speed --without-trl` measures the others.")
    TRL_READY.touch()
