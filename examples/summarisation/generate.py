"""Write the summarisation records: events of phrasings.yaml in, two JSON-lines files of reports with a summary out.

Run `python -m examples.summarisation.generate` in the repository's root.
"""

import random
from pathlib import Path

from examples.writing import Book, Row, phrase, phrasings, write

FOLDER = Path(__file__).resolve().parent
SIZES = {"train": 320, "test": 80}
INSTRUCTION = "Summarise in one sentence."


def build() -> dict[str, list[Row]]:
    """The records of both files by their names."""
    told = phrasings(FOLDER)
    book = Book("summarisation")
    kinds = list(told["kinds"])

    def make(split: str, rng: random.Random, number: int) -> Row:
        kind = told["kinds"][kinds[number % len(kinds)]]
        town, other = rng.sample(told["towns"][split], 2)
        slots = {
            "town": town,
            "other": other,
            "thing": rng.choice(kind["things"][split]),
            "month": rng.choice(told["months"][split]),
            "k": rng.randrange(4, 20),
            "few": rng.randrange(0, 4),
            "m": 50 * rng.randrange(3, 60),
        }
        fillers = rng.sample(told["fillers"][split], rng.choice((1, 1, 2)))
        parts = [phrase(rng, kind["lead"][split], **slots), phrase(rng, kind["detail"][split], **slots)]
        for filler in fillers:
            parts.insert(rng.randrange(1, len(parts) + 1), filler.format(n=rng.choice(told["names"][split])))
        return {
            "instruction": INSTRUCTION,
            "input": " ".join(parts),
            "output": kind["summary"].format(**slots),
            "kind": kinds[number % len(kinds)],
        }

    return book.files(SIZES, make)


if __name__ == "__main__":
    write(FOLDER, build())
