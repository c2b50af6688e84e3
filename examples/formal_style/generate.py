"""Write the formal-style records: twins of phrasings.yaml in, two JSON-lines files of rewritten messages out.

Run `python -m examples.formal_style.generate` in the repository's root.
"""

import random
from pathlib import Path
from typing import Any

from examples.writing import Book, Row, phrasings, write

FOLDER = Path(__file__).resolve().parent
SIZES = {"train": 420, "test": 80}
INSTRUCTION = "Make this formal."
# How often a part is there; the request always is.
SHARES = {"openers": 0.6, "requests": 1.0, "times": 0.6, "closings": 0.35}


def build() -> dict[str, list[Row]]:
    """The records of both files by their names."""
    told = phrasings(FOLDER)
    book = Book("formal style")

    def make(split: str, rng: random.Random, number: int) -> Row:
        slots = {"t": rng.choice(told["things"][split]), "n": rng.choice(told["names"][split])}
        informal, formal = [], []
        for part, share in SHARES.items():
            if rng.random() < share:
                meaning = _meaning(told[part], rng, number if part == "requests" else None)
                informal.append(rng.choice(meaning[split]))
                formal.append(meaning["formal"])
        text = " ".join(part if part[-1] in ",.!?" else f"{part}{rng.choice(('.', ' -', ','))}" for part in informal)
        return {
            "instruction": INSTRUCTION,
            "input": text.rstrip("., -").format(**slots),
            "output": " ".join(formal).format(**slots),
        }

    return book.files(SIZES, make)


def _meaning(meanings: list[dict[str, Any]], rng: random.Random, number: int | None) -> dict[str, Any]:
    """One of the meanings; in turn where a number is given, so that all are equally frequent."""
    return meanings[number % len(meanings)] if number is not None else rng.choice(meanings)


if __name__ == "__main__":
    write(FOLDER, build())
