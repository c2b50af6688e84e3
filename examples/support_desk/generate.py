"""Write the support desk's records: the sentences of phrasings.yaml in, five JSON-lines files out, byte for byte.

Run `python examples/support_desk/generate.py` from anywhere; it rewrites the files beside itself.
"""

import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).resolve().parent
SEED = 2026
INSTRUCTION = "Ticket to JSON."
INTENTS = ("refund", "late_delivery", "wrong_item", "cancel", "invoice", "broken", "change_address", "login")
PRIORITIES = ("high", "normal", "low")

# Clean records an intent, by file: English, Chinese.
SIZES = {"train": (100, 14), "october": (21, 3), "november": (17, 2), "mislabelled": (34, 4), "test": (21, 3)}
DIRT = {
    "empty output": 14,
    "exact duplicate": 14,
    "near duplicate": 12,
    "contradictory answers": 12,
    "broken encoding": 9,
    "over-long": 4,
    "e-mail address": 6,
    "card number": 4,
    "broken JSON": 1,
}

# Words that decide the priority; they stand in the urgency sentence alone, and no keyboard slip touches them.
CUES = re.compile("rush|hurry|whenever|your time|urgent|asap|immediately|right|today")
SHORT_FORMS = {"please": "pls", "thanks": "thx", "you": "u", "your": "ur", "account": "acct", "and": "&", "with": "w/"}
NEIGHBOURS = {"a": "s", "e": "r", "i": "o", "o": "p", "r": "t", "t": "y", "n": "m", "l": "k", "d": "f", "c": "v"}
CHOICE = re.compile(r"\(([^()]*\|[^()]*)\)")
NAMES = ("Renée Müller", "José Ibáñez", "Zoë Brontë", "Søren Kjær", "Chloé Lefèvre")
MAILBOXES = ("anna.weber@example.com", "li.wei@example.org", "j.smith+shop@example.net")
CARDS = ("4111 1111 1111 1111", "5555 5555 5555 4444", "4242-4242-4242-4242", "378282246310005")
LONGEST_CHINESE = 25
CLOSEST = 0.85


@dataclass(frozen=True)
class Ticket:
    """A customer's message and what is true of it."""

    text: str
    language: str
    intent: str
    product: str | None
    order: str | None
    priority: str

    @property
    def answer(self) -> str:
        """The one line of JSON that the model has to give."""
        facts = {"intent": self.intent, "product": self.product, "order": self.order, "priority": self.priority}
        return json.dumps(facts, separators=(",", ":"))


def row(ticket: Ticket, text: str | None = None, answer: str | None = None) -> str:
    """A record in alpaca format as one line, with another text or answer where dirt is wanted."""
    record = {
        "instruction": INSTRUCTION,
        "input": ticket.text if text is None else text,
        "output": ticket.answer if answer is None else answer,
        "language": ticket.language,
    }
    return json.dumps(record, ensure_ascii=False)


def shingles(text: str) -> frozenset[str]:
    """The sets of three characters that near-duplicates are measured by, without regard to case."""
    text = text.casefold()
    return frozenset(text[i : i + 3] for i in range(len(text) - 2))


def likeness(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard similarity: shared over all.

    >>> likeness(frozenset("abc"), frozenset("bcd"))
    0.5
    """
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def slip(word: str, rng: random.Random) -> str:
    """One slip on the keyboard inside a word; its first letter stays."""
    at = rng.randrange(1, len(word) - 1)
    swapped = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    dropped = word[:at] + word[at + 1 :]
    doubled = word[:at] + word[at] + word[at:]
    neighbour = word[:at] + NEIGHBOURS.get(word[at], word[at] * 2) + word[at + 1 :]
    return rng.choice([made for made in (swapped, dropped, doubled, neighbour) if made != word])


class Writer:
    """Writes tickets from one split's sentences; new to all writers that share `seen` and `orders`."""

    def __init__(self, name: str, sentences: dict[str, Any], seen: list[frozenset[str]], orders: set[str]) -> None:
        self.rng = random.Random(f"{SEED}/{name}")
        self.sentences = sentences
        self.seen = seen
        self.orders = orders

    def tickets(self, english: int, chinese: int) -> list[Ticket]:
        """So many new tickets of every intent, its phrasings used in turn."""
        made = []
        for intent in INTENTS:
            for language, count in (("en", english), ("zh", chinese)):
                problems = self._in_turn(self.sentences["problems"][intent][language])
                made += [self._new(language, intent, problems) for _ in range(count)]
        self.rng.shuffle(made)
        return made

    def _in_turn(self, problems: list[str]) -> Iterator[str]:
        while True:
            yield from self.rng.sample(problems, len(problems))

    def _new(self, language: str, intent: str, problems: Iterator[str]) -> Ticket:
        for problem in problems:
            ticket = self._ticket(language, intent, problem)
            if language == "zh" and len(ticket.text) > LONGEST_CHINESE:
                continue
            prompt = shingles(f"{INSTRUCTION}\n\n{ticket.text}")
            if all(likeness(prompt, other) < CLOSEST for other in self.seen):
                self.seen.append(prompt)
                self.orders.add(ticket.order or "")
                return ticket
        raise AssertionError("problems never end")

    def _ticket(self, language: str, intent: str, problem: str) -> Ticket:
        rng = self.rng
        product = rng.choice(self.sentences["products"]["en"]) if "{p}" in problem else None
        order = self._order() if rng.random() < 0.75 else None
        priority = rng.choice(PRIORITIES)
        text = (self._english if language == "en" else self._chinese)(problem, order is not None, priority)
        return Ticket(text.format(p=product, o=order), language, intent, product, order, priority)

    def _order(self) -> str:
        while True:
            prefix = self.rng.choice((self.rng.choice("ABCDEFGHKMPRT"), "", "SO-"))
            number = f"{prefix}{self.rng.randrange(1000, 10_000) if prefix else self.rng.randrange(10_000, 100_000)}"
            if number not in self.orders:
                return number

    def _slot(self, slot: str, language: str, share: float = 1.0) -> str:
        """A sentence for a slot, or nothing when the dice say so."""
        if self.rng.random() >= share:
            return ""
        return self._chosen(self.rng.choice(self.sentences[slot][language]))

    def _chosen(self, sentence: str) -> str:
        """The sentence with one of every (a|b)."""
        return CHOICE.sub(lambda found: self.rng.choice(found[1].split("|")), sentence)

    def _english(self, problem: str, has_order: bool, priority: str) -> str:
        rng = self.rng
        problem = self._chosen(problem)
        if rng.random() < 0.12:
            problem = self._with_slip(problem)
        parts = [problem]
        if has_order and rng.random() < 0.25:
            parts = [f"{self._slot('orders_first', 'en')} {problem}"]
        elif has_order:
            parts.append(self._slot("orders", "en"))
        if priority != "normal":
            parts.insert(0 if rng.random() < 0.12 else len(parts), self._slot(priority, "en"))
        parts.append(self._slot("closings", "en", share=0.15))
        opener = self._slot("openers", "en", share=0.2)
        return self._styled(opener, [part for part in parts if part])

    def _styled(self, opener: str, parts: list[str]) -> str:
        """The parts as one message: proper, without capitals, or without stops as well; sometimes in short forms."""
        rng = self.rng
        style = rng.choices(("proper", "lower", "sloppy"), (55, 25, 20))[0]
        text = f"{opener}, " if opener else ""
        for number, part in enumerate(parts):
            last = number == len(parts) - 1
            if style == "proper" and (number or not opener) and not part.startswith("{"):
                part = part[0].upper() + part[1:]
            stop = "" if part[-1] in "?!" else "." if style != "sloppy" else "" if last else ","
            text += part + stop + ("" if last else " ")
        text = text[0].upper() + text[1:] if style == "proper" else text.lower()
        if rng.random() < 0.1:
            # "take your time" decides a priority, so its words stay whole.
            text = re.sub(r"(?<!(?i:take) )\b[a-z]+\b", lambda found: SHORT_FORMS.get(found[0], found[0]), text)
        return text

    def _with_slip(self, text: str) -> str:
        words = re.findall(r"\b[a-z]{5,}\b", text)
        word = self.rng.choice(words or [""])
        return text.replace(word, slip(word, self.rng), 1) if word else text

    def _chinese(self, problem: str, has_order: bool, priority: str) -> str:
        rng = self.rng
        parts = [self._slot("openers", "zh", share=0.1), problem]
        if has_order and rng.random() < 0.25:
            parts[1] = self._slot("orders_first", "zh") + problem
        elif has_order:
            parts.append(self._slot("orders", "zh"))
        if priority != "normal":
            parts.append(self._slot(priority, "zh"))
        parts.append(self._slot("closings", "zh", share=0.1))
        text = "，".join(part for part in parts if part).replace("？，", "？")
        return text if text.endswith("？") or rng.random() < 0.7 else text + "。"


def dirt(writer: Writer, clean: list[Ticket]) -> list[tuple[str, str]]:
    """The bad lines of the training file with their kind, as many as DIRT says."""
    rng = writer.rng
    fresh = iter(writer.tickets(8, 0))
    english = [ticket for ticket in clean if ticket.language == "en"]
    lines = [("empty output", row(ticket, answer="")) for ticket in islice(fresh, DIRT["empty output"])]
    lines += [("exact duplicate", row(ticket)) for ticket in rng.sample(clean, DIRT["exact duplicate"])]
    lines += [("near duplicate", line) for line in islice(near_duplicates(english, rng), DIRT["near duplicate"])]
    for ticket in islice(fresh, DIRT["contradictory answers"] // 2):
        other = rng.choice([intent for intent in INTENTS if intent != ticket.intent])
        wrong = ticket.answer.replace(f'"{ticket.intent}"', f'"{other}"')
        lines += [("contradictory answers", row(ticket)), ("contradictory answers", row(ticket, answer=wrong))]
    for number, ticket in enumerate(islice(fresh, DIRT["broken encoding"])):
        signed = f"{ticket.text} {NAMES[number % len(NAMES)]}"
        misread = signed.encode().decode("cp1252") if number < 5 else re.sub(r"[^\x00-\x7f]", "\ufffd", signed)
        lines.append(("broken encoding", row(ticket, misread)))
    for ticket in islice(fresh, DIRT["over-long"]):
        lines.append(("over-long", row(ticket, thread(ticket.text, english, rng))))
    for kind, note, values in (("e-mail address", "Mail me:", MAILBOXES), ("card number", "Paid by card", CARDS)):
        for number, ticket in enumerate(islice(fresh, DIRT[kind])):
            lines.append((kind, row(ticket, f"{ticket.text} {note} {values[number % len(values)]}")))
    cut = row(next(fresh))
    return [*lines, ("broken JSON", cut[: len(cut) // 2])]


def near_duplicates(tickets: list[Ticket], rng: random.Random) -> Iterator[str]:
    """Clean records once more, with one slip of the keyboard that changes less than a tenth of the shingles."""
    for ticket in rng.sample(tickets, len(tickets)):
        words = [word for word in re.findall(r"\b[a-z]{5,}\b", ticket.text) if word not in str(ticket.product)]
        for word in rng.sample(words, min(1, len(words))):
            text = ticket.text.replace(word, slip(word, rng), 1)
            if not CUES.search(word) and likeness(shingles(text), shingles(ticket.text)) >= 0.92:
                yield row(ticket, text)


def thread(text: str, others: list[Ticket], rng: random.Random) -> str:
    """A message with the whole thread pasted under it: more than 2,000 characters."""
    while len(text) <= 2_100:
        text += f"\n> {rng.choice(others).text}\n> On {rng.randrange(1, 29)} October the shop wrote: we look into it."
    return text


def shuffled_answers(tickets: list[Ticket]) -> list[str]:
    """Records that all carry another record's answer, and none an answer equal to its own."""
    answers = [ticket.answer for ticket in tickets]
    for shift in range(1, len(answers)):
        moved = answers[shift:] + answers[:shift]
        if all(one != other for one, other in zip(answers, moved, strict=True)):
            return [row(ticket, answer=answer) for ticket, answer in zip(tickets, moved, strict=True)]
    raise AssertionError("every shift leaves some record its own answer")


def build() -> tuple[dict[str, list[str]], list[str]]:
    """The lines of every file by its name, and for each line of train.jsonl its kind: "clean" or a key of DIRT."""
    sentences = yaml.safe_load((FOLDER / "phrasings.yaml").read_text(encoding="utf-8"))
    seen: list[frozenset[str]] = []
    orders: set[str] = set()
    tickets = {}
    for name, size in SIZES.items():
        split = "train" if name == "mislabelled" else name
        tickets[name] = Writer(name, sentences[split], seen, orders).tickets(*size)
    mixed = [("clean", row(ticket)) for ticket in tickets["train"]]
    mixed += dirt(Writer("dirt", sentences["train"], seen, orders), tickets["train"])
    random.Random(f"{SEED}/order").shuffle(mixed)
    files = {
        "train.jsonl": [line for _, line in mixed],
        "test.jsonl": [row(ticket) for ticket in tickets["test"]],
        "october.jsonl": [row(ticket) for ticket in tickets["october"]],
        "november.jsonl": [row(ticket) for ticket in tickets["november"]],
        "mislabelled.jsonl": shuffled_answers(tickets["mislabelled"]),
    }
    return files, [kind for kind, _ in mixed]


def main() -> None:
    """Rewrite the files beside this one and say how many lines each has."""
    files, kinds = build()
    for name, lines in files.items():
        (FOLDER / name).write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
    counts = ", ".join(f"{name} {len(lines)}" for name, lines in files.items())
    print(f"{counts} lines; {len(kinds) - kinds.count('clean')} bad lines in train.jsonl")


if __name__ == "__main__":
    main()
