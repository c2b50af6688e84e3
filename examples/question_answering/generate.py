"""Write the question-answering records: facts of phrasings.yaml in, two JSON-lines files of texts with questions out.

The answer is a span of the text. Run `python -m examples.question_answering.generate` in the repository's root.
"""

import random
from pathlib import Path
from typing import Any

from examples.writing import Book, Row, capital, phrase, phrasings, write

FOLDER = Path(__file__).resolve().parent
SIZES = {"train": 400, "test": 80}
NUMBERS = {"year": (1780, 2020), "count": (11, 900), "books": (3, 40)}


def value(rng: random.Random, told: dict[str, Any], fact: str, split: str) -> str:
    """What a fact says: a year, a number, or a name of this split."""
    if fact in NUMBERS:
        return str(rng.randrange(*NUMBERS[fact]))
    if fact == "person":
        return " ".join(rng.choice(told["person"][part][split]) for part in ("first", "last"))
    return str(rng.choice(told[fact][split]))


def build() -> dict[str, list[Row]]:
    """The records of both files by their names."""
    told = phrasings(FOLDER)
    book = Book("question answering")
    kinds = list(told["kinds"].values())

    def make(split: str, rng: random.Random, number: int) -> Row:
        kind = kinds[number % len(kinds)]
        subject = kind["named"].format(s=rng.choice(kind["subject"][split]))
        facts = rng.sample(list(kind["facts"]), rng.choice((3, 4)))
        values = {fact: value(rng, told["values"], fact, split) for fact in facts}
        sentences = [
            phrase(rng, kind["facts"][fact][split], s=rng.choice(kind["again"]) if place else subject, v=values[fact])
            for place, fact in enumerate(facts)
        ]
        wanted = rng.choice(facts)
        return {
            "instruction": phrase(rng, kind["facts"][wanted]["asked"][split], s=subject),
            "input": " ".join(capital(sentence) for sentence in sentences),
            "output": values[wanted],
            "asks_for": wanted,
        }

    return book.files(SIZES, make)


if __name__ == "__main__":
    write(FOLDER, build())
