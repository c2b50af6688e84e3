"""`make bench`: the same rows and base in, tokens a second of each contender and their ratios out."""

import argparse
import csv
import json
import platform
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.modeling.base_model import fetch_carried
from tasks.settings import state

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results"
TRL = ROOT / ".venv-bench"
ALPACA, BANKING = "alpaca-en", "banking77"
TRAINING = {ALPACA: ["guide", "trl-packed", "trl-grouped", "ours"], BANKING: ["guide", "ours"]}


def rows_of(name: str, count: int) -> list[dict[str, str]]:
    """The first rows of a set as instruction, input, output."""
    if name == ALPACA:
        return list(json.loads((DATA / ALPACA / "alpaca_en_demo.json").read_text("utf-8"))[:count])
    with (DATA / BANKING / "train.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))[:: max(1, 10_000 // count)][:count]
    ask = "Which banking intent is this?"
    return [{"instruction": ask, "input": row["text"], "output": row["category"]} for row in rows]


def run(contender: str, rows: Path, base: Path) -> dict[str, Any]:
    """One contender in a process of its own; what it measured."""
    ours = not contender.startswith("trl")
    python = sys.executable if ours else str(TRL / "bin" / "python")
    script = ["-m", "benchmarks.contenders"] if ours else [str(ROOT / "benchmarks" / "trl_sft.py")]
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        command = [python, *script, contender, str(rows), str(base), out.name]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{contender} failed:\n{done.stderr[-3000:]}")
        return dict(json.loads(Path(out.name).read_text("utf-8")))


def make_trl() -> None:
    """TRL's own environment: its pins are not ours to impose."""
    if not (TRL / "bin" / "python").exists():
        print("making .venv-bench with TRL 1.16, about 3 minutes", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(TRL)], check=True)
        pip = [str(TRL / "bin" / "python"), "-m", "pip", "install", "-qq", "-c", str(ROOT / "constraints.txt")]
        subprocess.run(
            [*pip, "torch==2.13.0", "trl==1.16.*", "peft", "transformers", "accelerate", "datasets"], check=True
        )


def main() -> int:
    """Run every round and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alpaca-rows", type=int, default=16)
    parser.add_argument("--banking-rows", type=int, default=24)
    parser.add_argument("--prompts", type=int, default=64)
    told = parser.parse_args()
    if not DATA.is_dir():
        print(f"{DATA} is not there: nothing is measured.")
        return 0
    make_trl()
    base = fetch_carried("smollm2-135m-instruct", state().bases)
    found: dict[str, list[float]] = defaultdict(list)
    notes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as place:
        files = {}
        for name, count in ((ALPACA, told.alpaca_rows), (BANKING, told.banking_rows), ("prompts", told.prompts)):
            files[name] = Path(place, f"{name}.json")
            files[name].write_text(json.dumps(rows_of(BANKING if name == "prompts" else name, count)), "utf-8")
        for number in range(1, told.rounds + 1):
            found["peak"].append(run("peak", files[ALPACA], base)["gflops"])
            for name, contenders in TRAINING.items():
                for contender in contenders:
                    measured = run(contender, files[name], base)
                    found[f"{name}/{contender}"].append(measured["tokens"] / measured["seconds"])
                    notes[f"{name}/{contender}"] = measured
                    print(
                        f"round {number}: {name} {contender}: {found[f'{name}/{contender}'][-1]:.0f} real tokens/s",
                        flush=True,
                    )
            answers = {}
            for contender in ("guide-answers", "our-answers"):
                measured = run(contender, files["prompts"], base)
                found[contender].append(measured["tokens"] / measured["seconds"])
                answers[contender] = measured["answers"]
                print(f"round {number}: {contender}: {found[contender][-1]:.0f} new tokens/s", flush=True)
            shared = len(answers["guide-answers"])
            same = sum(a == b for a, b in zip(answers["guide-answers"], answers["our-answers"], strict=False))
            notes["identical answers"] = f"{same} of {shared}"
    write(found, notes, told)
    return 0


def ratio(found: dict[str, list[float]], one: str, other: str) -> str:
    """Ratio by round: median, and its range."""
    ratios = [a / b for a, b in zip(found[one], found[other], strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def write(found: dict[str, list[float]], notes: dict[str, Any], told: argparse.Namespace) -> None:
    """The table for people, the numbers for machines."""
    RESULTS.mkdir(exist_ok=True)
    day = f"{datetime.now(UTC):%Y-%m-%d}"
    ours = notes[f"{ALPACA}/ours"]
    share = [
        speed * ours["gflop_per_token"] / peak
        for speed, peak in zip(found[f"{ALPACA}/ours"], found["peak"], strict=True)
    ]
    lines = [
        f"# Speed, {day}",
        "",
        f"{cpu()}; {told.rounds} rounds; fp32 matrix peak {statistics.median(found['peak']):.0f} GFLOP/s; "
        f"versions: {ours['versions']}, {notes[f'{ALPACA}/trl-packed']['versions']}.",
        "",
        "| what | real tokens/s, median (range) | ours is … times it, by round |",
        "| --- | ---: | ---: |",
    ]
    for key, values in found.items():
        if key == "peak":
            continue
        own = "our-answers" if key.endswith("answers") else f"{key.partition('/')[0]}/ours"
        name = key.replace("-answers", ": answers, new tokens").replace("/", ": ")
        times = "" if key == own else ratio(found, own, key)
        lines.append(f"| {name} | {statistics.median(values):.0f} ({min(values):.0f} to {max(values):.0f}) | {times} |")
    lines += [
        "",
        f"Ours computes {ours['gflop_per_token']:.2f} GFLOP a real token, so it runs at "
        f"{statistics.median(share):.0%} ({min(share):.0%} to {max(share):.0%}) of the measured fp32 matrix peak. "
        f"Greedy answers identical to the one-by-one loop: {notes['identical answers']}.",
        "",
    ]
    (RESULTS / f"{day}.md").write_text("\n".join(lines), "utf-8")
    notes = {key: value for key, value in notes.items() if not isinstance(value, dict)}
    (RESULTS / f"{day}.json").write_text(
        json.dumps({"found": found, "notes": notes, "told": vars(told)}, indent=1), "utf-8"
    )
    print("\n".join(lines))


def cpu() -> str:
    """The processor and its cores."""
    import os

    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    sys.exit(main())
