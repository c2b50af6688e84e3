"""Write the law records: clauses of phrasings.yaml in, two JSON-lines files of kind and plain wording out.

Run `python -m examples.law.generate` in the repository's root.
"""

import random
from pathlib import Path

from examples.writing import Book, Row, capital, phrase, phrasings, write

FOLDER = Path(__file__).resolve().parent
SIZES = {"train": 380, "test": 80}
OPENED = 0.5
INSTRUCTION = "Name the clause and say it plainly."


def build() -> dict[str, list[Row]]:
    """The records of both files by their names."""
    told = phrasings(FOLDER)
    book = Book("law")
    kinds = list(told["clauses"])

    def make(split: str, rng: random.Random, number: int) -> Row:
        kind = kinds[number % len(kinds)]
        first, second = rng.choice(told["parties"][split])
        slots = {
            "a": first,
            "b": second,
            "n": rng.randrange(7, 91),
            "m": rng.randrange(3, 61),
            "p": rng.randrange(2, 13),
            "k": 5 * rng.randrange(2, 160),
            "law": rng.choice(told["laws"][split]),
        }
        clause = told["clauses"][kind]
        text = phrase(rng, clause[split], **slots)
        if rng.random() < OPENED:
            opening = phrase(rng, told["openings"][split], c=rng.randrange(2, 20))
            text = opening + (text if opening[0].isdigit() else text[0].lower() + text[1:])
        return {
            "instruction": INSTRUCTION,
            "input": text,
            "output": f"{capital(kind)}: {clause['plain'].format(**slots)}.",
            "clause": kind,
        }

    return book.files(SIZES, make)


if __name__ == "__main__":
    write(FOLDER, build())
