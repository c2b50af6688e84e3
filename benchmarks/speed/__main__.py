"""`make bench`: rows and a base in, tokens a second of each contender and their ratios out, to benchmarks/results/."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.jobs import PADDED, Job
from benchmarks.speed.results import ANSWERS, Findings, write
from benchmarks.speed.rounds import Entry, make_trl, measure
from benchmarks.speed.rows import ALPACA, BANKING, Row, read_rows, real_tokens, spread
from flows.environment import choose_waiting
from tasks.project import ROOT
from tasks.steps.state import state

DATA = ROOT.parent / "shared" / "data"
QUICK = {"rounds": 1, "alpaca_rows": 4, "banking_rows": 4, "prompts": 4, "guide_prompts": 2, "without_trl": True}


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--alpaca-rows", type=int, default=16, help="rows that each contender trains on once a round")
    parser.add_argument("--banking-rows", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=64, help="banking77 prompts that ours answers")
    parser.add_argument("--guide-prompts", type=int, default=8, help="the first of them, which the guide answers")
    parser.add_argument(
        "--pack-tokens", type=int, default=1024, help="tokens of one of our packs: as many as TRL packs"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--without-trl", action="store_true", help="do not make or use .venv-bench")
    parser.add_argument("--quick", action="store_true", help="one round of a few rows, without TRL: does it run?")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with alpaca-en/ and banking77/")
    parser.add_argument("--base", type=Path, help="a base model's folder; else SmolLM2-135M-Instruct")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    told = parser.parse_args(arguments)
    if told.quick:
        vars(told).update(QUICK)
    return told


def plan(told: argparse.Namespace, base: Path) -> list[Entry]:
    """What is measured in each round: contenders on rows that fit the guide's padding, their real tokens counted."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=False)

    def tokens(row: Row) -> int:
        return real_tokens(row, lambda text: len(tokenizer(text)["input_ids"]))

    def entry(name: str, contender: str, rows: list[Row]) -> Entry:
        return Entry(name, Job(contender, rows, sum(map(tokens, rows)), base, told.threads, told.pack_tokens))

    alpaca = [row for row in read_rows(told.data, ALPACA)[: 4 * told.alpaca_rows] if tokens(row) <= PADDED]
    asked = spread(read_rows(told.data, BANKING), max(told.banking_rows, told.prompts))
    trl = [] if told.without_trl else ["trl-packed", "trl-grouped"]
    chosen = {ALPACA: alpaca[: told.alpaca_rows], BANKING: asked[: told.banking_rows]}
    return [
        *(entry(ALPACA, contender, chosen[ALPACA]) for contender in ("guide", *trl, "ours")),
        *(entry(BANKING, contender, chosen[BANKING]) for contender in ("guide", "ours")),
        entry(ANSWERS, "guide-answers", asked[: told.guide_prompts]),
        entry(ANSWERS, "our-answers", asked[: told.prompts]),
    ]


def base_of(told: argparse.Namespace) -> Path:
    """The folder of the base model, fetched where it is not there yet."""
    if told.base:
        return Path(told.base).resolve()
    from tasks.modeling.base_model import fetch_carried

    return fetch_carried("smollm2-135m-instruct", state().bases)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure all rounds, write the results and show the page; 1 when an answer differs from the guide's."""
    told = options(sys.argv[1:] if arguments is None else arguments)
    if not told.data.is_dir():
        print(f"{told.data} is not there: nothing is measured.")
        return 0
    choose_waiting(seconds=1.0)
    if not told.without_trl:
        make_trl()
    findings = Findings(list(measure(plan(told, base_of(told)), told.rounds)))
    print(write(findings, {key: str(value) for key, value in vars(told).items()}, told.results))
    same, compared = findings.answers()
    if same < compared:
        print(f"{compared - same} of {compared} greedy answers differ from those of the one-by-one loop.")
    return int(same < compared)


if __name__ == "__main__":
    sys.exit(main())
