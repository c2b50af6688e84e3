"""Write the medical records: complaints of phrasings.yaml in, two JSON-lines files of Chinese triage out.

The answer names a department and how soon to see a doctor; it never names an illness, a drug or a dose.
Run `python -m examples.medical.generate` in the repository's root.
"""

import random
from pathlib import Path

from examples.writing import Book, Row, phrase, phrasings, write

FOLDER = Path(__file__).resolve().parent
SIZES = {"train": 390, "test": 90}
URGENCIES = ("快", "缓", "快", "缓", "急")
INSTRUCTION = "分诊"


def build() -> dict[str, list[Row]]:
    """The records of both files by their names."""
    told = phrasings(FOLDER)
    book = Book("medical")

    def make(split: str, rng: random.Random, number: int) -> Row:
        urgency = URGENCIES[number % len(URGENCIES)]
        known = told["dangers"] if urgency == "急" else told["departments"]
        department = list(known)[number // len(URGENCIES) % len(known)]
        cues = told["dangers"][department] if urgency == "急" else told["cues"][urgency]
        slots = {
            "who": rng.choice(told["people"][split]),
            "what": rng.choice(told["departments"][department][split]),
            "how": rng.choice(cues[split]),
        }
        return {
            "instruction": INSTRUCTION,
            "input": phrase(rng, told["frames"][split], **slots),
            "output": told["advice"][urgency].format(department=department),
            "urgency": urgency,
        }

    return book.files(SIZES, make)


if __name__ == "__main__":
    write(FOLDER, build())
