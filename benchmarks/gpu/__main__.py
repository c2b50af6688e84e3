"""`python -m benchmarks.gpu`: shapes and methods in; memory against prediction, speed and merges out, to results/."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu.shapes import SHAPES, make
from benchmarks.gpu.trainings import METHODS, Load, measure
from tasks.project import ROOT


def options(arguments: Sequence[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--shape", action="append", choices=list(SHAPES), help="may be repeated; else 1b and 7b")
    parser.add_argument("--method", action="append", choices=list(METHODS), help="may be repeated; else all")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a pack")
    parser.add_argument("--document", type=int, default=512, help="tokens of a document")
    parser.add_argument("--without-checkpointing", action="store_true", help="keep all activations")
    parser.add_argument(
        "--folder", type=Path, default=ROOT / ".tuneline" / "gpu-benchmark", help="models and trainings"
    )
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure every method on every shape, each in a process of its own, and write the page after each."""
    told = options(sys.argv[1:] if arguments is None else arguments)
    load = Load(told.steps, told.tokens, told.document, not told.without_checkpointing)
    from benchmarks.gpu.page import file_of_today, row, so_far

    results = so_far(load, told.results)
    measured = {(one.shape, one.method): one for one in results.measured}
    places = [(shape, method) for shape in SHAPES for method in METHODS]
    for shape in told.shape or ["1b", "7b"]:
        told.folder.mkdir(parents=True, exist_ok=True)
        base = make(shape, told.folder)
        for method in told.method or METHODS:
            one = measured[shape, method] = measure(shape, base, method, load, told.folder)
            print(row(one), flush=True)
            results = replace(results, measured=[measured[place] for place in places if place in measured])
            results.write(file_of_today(told.results))
    print(results.tables())
    return 0


if __name__ == "__main__":
    sys.exit(main())
