"""Write the finance records: statements of phrasings.yaml in, two JSON-lines files of structured facts out.

Run `python -m examples.finance.generate` in the repository's root.
"""

import json
import random
from pathlib import Path

from examples.writing import Book, Row, capital, phrase, phrasings, write

FOLDER = Path(__file__).resolve().parent
SIZES = {"train": 400, "test": 80}
INSTRUCTION = "Facts as JSON."
MOVES = ("up", "down", "up", "down", "flat")
TONES = {
    ("up", "good"): "positive",
    ("down", "bad"): "positive",
    ("up", "bad"): "negative",
    ("down", "good"): "negative",
}


def amount(rng: random.Random) -> str:
    """A sum as statements print it."""
    size, unit = (9_900, "m") if rng.random() < 0.8 else (99, "bn")
    return f"{rng.choice('$€£')}{rng.randrange(11, size) / 10:g}{unit}"


def build() -> dict[str, list[Row]]:
    """The records of both files by their names."""
    told = phrasings(FOLDER)
    book = Book("finance")

    def make(split: str, rng: random.Random, number: int) -> Row:
        move, worth = MOVES[number % len(MOVES)], ("good", "bad")[number // len(MOVES) % 2]
        company, item = rng.choice(told["companies"][split]), rng.choice(told["items"][worth][split])
        percent, total = rng.randrange(2, 60), amount(rng)
        text = phrase(
            rng, told["moves"][move][split], c=company, i=item, p=percent, x=total, q=rng.choice(told["periods"][split])
        )
        facts = {
            "company": company,
            "item": item,
            "move": move,
            "percent": None if move == "flat" else percent,
            "amount": total,
            "tone": TONES.get((move, worth), "neutral"),
        }
        answer = json.dumps(facts, separators=(",", ":"), ensure_ascii=False)
        return {"instruction": INSTRUCTION, "input": capital(text), "output": answer, "tone": facts["tone"]}

    return book.files(SIZES, make)


if __name__ == "__main__":
    write(FOLDER, build())
