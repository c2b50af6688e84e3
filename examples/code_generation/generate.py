"""Write the code-generation records: the phrasings and code pieces of phrasings.yaml in, two JSON-lines files out.

Run `python -m examples.code_generation.generate` in the repository's root.
"""

import random
import zlib
from pathlib import Path
from typing import Any

from examples.writing import Book, Row, phrase, phrasings, write

FOLDER = Path(__file__).resolve().parent
SIZES = {"train": 420, "test": 80}
FAMILIES = ("numbers", "words", "numbers", "words", "numbers", "conversions")
LETTERS = "abcdeghilmnoprstuw"


def split_of(*pieces: str) -> str:
    """The one split in which these pieces of code stand together."""
    return "test" if zlib.crc32("/".join(pieces).encode()) % 5 == 0 else "train"


def comprehension(rng: random.Random, told: dict[str, Any], family: str, split: str) -> tuple[str, str, str]:
    """An argument's name, what is asked for in words, and the expression that gives it."""
    argument = rng.choice(told[f"{family[:-1]}_arguments"][split])
    pieces = told[family]
    while True:
        chosen = [rng.choice(list(pieces[part])) for part in ("aggregates", "filters", "transforms")]
        aggregate, kept, each = (
            pieces[part][key] for part, key in zip(("aggregates", "filters", "transforms"), chosen, strict=True)
        )
        if split_of(*chosen) == split and chosen[1:] != ["all", "plain"]:
            break
    largest = 12 if family == "words" or "%" in kept["code"] else 100
    slots = {"argument": argument, "k": rng.randrange(3, largest), "c": rng.choice(LETTERS)}
    things = phrase(rng, each[split], things=phrase(rng, kept[split], **slots))
    loop = f"{each['code']} for {family[0]} in {argument}"
    if kept["code"]:
        loop += f" if {kept['code'].format(**slots)}"
    return argument, phrase(rng, aggregate[split], things=things), aggregate["code"].format(each=loop)


def conversion(rng: random.Random, told: dict[str, Any], split: str) -> tuple[str, str, str]:
    """The same for a conversion of units, whose factor the request gives."""
    source, target, factor = rng.choice(told["conversions"][split])
    what = phrase(rng, told["conversion_texts"][split], source=source, target=target, factor=factor)
    return source, what, f"{source} * {factor}"


def build() -> dict[str, list[Row]]:
    """The records of both files by their names."""
    told = phrasings(FOLDER)
    book = Book("code generation")

    def make(split: str, rng: random.Random, number: int) -> Row:
        family = FAMILIES[number % len(FAMILIES)]
        if family == "conversions":
            argument, what, expression = conversion(rng, told, split)
        else:
            argument, what, expression = comprehension(rng, told, family, split)
        name = rng.choice(told["names"][split])
        return {
            "instruction": phrase(rng, told["frames"][split], name=name, argument=argument, what=what),
            "input": "",
            "output": f"def {name}({argument}):\n    return {expression}",
            "family": family,
        }

    return book.files(SIZES, make)


if __name__ == "__main__":
    write(FOLDER, build())
