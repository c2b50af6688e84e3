"""Phrasings in, alpaca records out: what the generators of the scenarios share.

A generator makes one record from one split's phrasings; this file draws until there are enough that are unlike each
other, within a file and across both, and writes them.
"""

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

SEED = 2026
CLOSEST = 0.85
DRAWS = 400
CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")

Row = dict[str, str]
Shingles = frozenset[str]


def phrasings(folder: Path) -> dict[str, Any]:
    """What `phrasings.yaml` in the folder says."""
    return dict(yaml.safe_load((folder / "phrasings.yaml").read_text(encoding="utf-8")))


def phrase(rng: random.Random, sentences: list[str], **slots: object) -> str:
    """One of the sentences, with one of every (a|b) and every {slot} filled.

    >>> phrase(random.Random(0), ["(Hi|Hi) {name}"], name="Ann")
    'Hi Ann'
    """
    return CHOICE.sub(lambda found: rng.choice(found[1].split("|")), rng.choice(sentences)).format(**slots)


def capital(text: str) -> str:
    """The text with its first letter large and the others as they are.

    >>> capital("the Ark")
    'The Ark'
    """
    return text[:1].upper() + text[1:]


def shingles(text: str) -> Shingles:
    """The runs of three letters or digits that near-duplicates are measured by, as the checks on data measure them."""
    plain = "".join(character for character in text.casefold() if character.isalnum())
    return frozenset(plain[start : start + 3] for start in range(max(1, len(plain) - 2)))


def likeness(one: Shingles, other: Shingles) -> float:
    """Jaccard similarity: shared over all.

    >>> likeness(frozenset("abc"), frozenset("bcd"))
    0.5
    """
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


class Book:
    """Draws the records of one scenario; no prompt is like another at `CLOSEST` in both of its parts."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[tuple[Shingles, Shingles]] = []

    def files(self, sizes: dict[str, int], make: Callable[[str, random.Random, int], Row]) -> dict[str, list[Row]]:
        """The records of every split by the name of its file, as many as `sizes` says.

        `make` gets the split, a source of chance, and how many records the split has already.
        """
        return {f"{split}.jsonl": self._draw(split, count, make) for split, count in sizes.items()}

    def _draw(self, split: str, count: int, make: Callable[[str, random.Random, int], Row]) -> list[Row]:
        rng = random.Random(f"{SEED}/{self.name}/{split}")
        rows: list[Row] = []
        for _ in range(DRAWS * count):
            row = make(split, rng, len(rows))
            if self._is_new(row):
                rows.append(row)
            if len(rows) == count:
                rng.shuffle(rows)
                return rows
        raise AssertionError(f"{self.name}: only {len(rows)} of {count} {split} records are new; add phrasings")

    def _is_new(self, row: Row) -> bool:
        main, side = shingles(row["input"] or row["instruction"]), shingles(row["instruction"])
        if any(likeness(main, a) >= CLOSEST and likeness(side, b) >= CLOSEST for a, b in self.seen):
            return False
        self.seen.append((main, side))
        return True


def lines(rows: list[Row]) -> str:
    """The records as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write(folder: Path, files: dict[str, list[Row]]) -> None:
    """Rewrite the files of a scenario and say how many lines each has."""
    for name, rows in files.items():
        (folder / name).write_text(lines(rows), encoding="utf-8", newline="\n")
    print(", ".join(f"{folder.name}/{name}: {len(rows)} records" for name, rows in files.items()))
