"""Write the translation records: words of phrasings.yaml in, two JSON-lines files of sentences in both directions out.

Run `python -m examples.translation.generate` in the repository's root.
"""

import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from examples.writing import Book, Row, capital, phrasings, write

FOLDER = Path(__file__).resolve().parent
SIZES = {"train": 450, "test": 96}
DIRECTIONS = {"en-zh": "Translate into Chinese.", "zh-en": "Translate into English."}

Words = dict[str, Any]
Sentence = tuple[str, str, str]
"""English, Chinese, and which words stand together in it."""


def subject(rng: random.Random, told: Words, split: str) -> tuple[str, str, bool]:
    """Who does it: English, Chinese, and whether the verb takes -s."""
    group = rng.choice(("first_and_second", "third", "names"))
    if group == "names":
        name = rng.choice(told["names"][split])
        return name, name, True
    return (*rng.choice(told[group]), group == "third")


def doing(rng: random.Random, told: Words, split: str) -> Sentence:
    """Somebody does something, did it, will do it, wants it, likes it, can do it, does not do it."""
    english, chinese, third = subject(rng, told, split)
    verb = rng.choice(told["verbs"])
    (plain, with_s, past, act), (thing, chosen) = verb["forms"], rng.choice(verb["objects"])
    now = with_s if third else plain
    habit, before, later = (rng.choice(told[time]) for time in ("habits", "pasts", "futures"))
    want, like, do = ("wants", "likes", "does") if third else ("want", "like", "do")
    pattern = rng.choice(("habit", "past", "future", "want", "like", "can", "not", "question"))
    made = {
        "habit": (f"{english} {now} {thing} {habit[0]}.", f"{chinese}{habit[1]}{act}{chosen}。"),
        "past": (f"{english} {past} {thing} {before[0]}.", f"{chinese}{before[1]}{act}了{chosen}。"),
        "future": (f"{english} will {plain} {thing} {later[0]}.", f"{chinese}{later[1]}要{act}{chosen}。"),
        "want": (f"{english} {want} to {plain} {thing}.", f"{chinese}想{act}{chosen}。"),
        "like": (f"{english} {like} to {plain} {thing}.", f"{chinese}喜欢{act}{chosen}。"),
        "can": (f"{english} can {plain} {thing}.", f"{chinese}可以{act}{chosen}。"),
        "not": (f"{english} {do} not {plain} {thing}.", f"{chinese}不{act}{chosen}。"),
        "question": (f"{do} {english} {plain} {thing}?", f"{chinese}{act}{chosen}吗？"),
    }
    return (*made[pattern], f"{pattern} {plain} {thing}")


def having(rng: random.Random, told: Words, split: str) -> Sentence:
    """Somebody has so many of something."""
    english, chinese, third = subject(rng, told, split)
    number, counted = rng.choice(told["numbers"]), rng.choice(told["counted"])
    has = "has" if third else "have"
    return f"{english} {has} {number[0]} {counted[0]}.", f"{chinese}有{number[1]}{counted[1]}。", number[0] + counted[0]


def lying(rng: random.Random, told: Words, _: str) -> Sentence:
    """Something is somewhere."""
    thing, place = rng.choice(told["things"]), rng.choice(told["places"])
    return f"the {thing[0]} is in the {place[0]}.", f"{thing[1]}在{place[1]}里。", thing[0] + place[0]


def being(rng: random.Random, told: Words, _: str) -> Sentence:
    """Something is like this."""
    thing, quality = rng.choice(told["things"] + told["places"]), rng.choice(told["qualities"])
    return f"the {thing[0]} is {quality[0]}.", f"{thing[1]}很{quality[1]}。", thing[0] + quality[0]


PATTERNS: tuple[Callable[[random.Random, Words, str], Sentence], ...] = (doing, doing, doing, having, lying, being)


def split_of(together: str) -> str:
    """The one split in which these words stand together, in either direction."""
    return "test" if zlib.crc32(together.encode()) % 5 == 0 else "train"


def build() -> dict[str, list[Row]]:
    """The records of both files by their names."""
    told = phrasings(FOLDER)
    book = Book("translation")
    directions = list(DIRECTIONS)

    def make(split: str, rng: random.Random, number: int) -> Row:
        while True:
            english, chinese, together = PATTERNS[number % len(PATTERNS)](rng, told, split)
            if split_of(together) == split:
                break
        direction = directions[number // len(PATTERNS) % 2]
        pair = (capital(english), chinese)
        asked, answer = pair if direction == "en-zh" else pair[::-1]
        return {"instruction": DIRECTIONS[direction], "input": asked, "output": answer, "direction": direction}

    return book.files(SIZES, make)


if __name__ == "__main__":
    write(FOLDER, build())
