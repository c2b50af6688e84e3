"""Records in, what is wrong with each out: small checks, each with a name, that decide and change nothing."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from tasks.data.records import Message, Record
from tasks.recipe.stages import DataRecipe

Action = Literal["quarantined", "dropped", "reported", "redacted", "kept in one split"]


class Offence(NamedTuple):
    """One bad row, as it goes into the quarantine file."""

    source: str
    reason: str
    detail: str
    row: dict[str, Any]


class Finding(BaseModel):
    """What one check found over all rows, with the first offenders."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    check: str
    meaning: str
    action: Action
    count: int
    offenders: list[str]


class Entry(NamedTuple):
    """A record on its way through the checks, and the row it came from."""

    row: dict[str, Any]
    record: Record


MEANINGS = {
    "not_json": "line that is not JSON",
    "schema": "row without the columns or turns its format needs",
    "empty": "empty prompt or empty answer",
    "broken_encoding": "damaged text: replacement or control characters, text decoded wrongly",
    "too_short": "answer shorter than data.min_characters",
    "too_long": "record longer than data.max_characters",
    "exact_duplicate": "same messages as an earlier record; the first is kept",
    "contradictory": "same prompt as another record, different answer",
    "leak": "training prompt that is, or nearly is, a prompt of the held-out rows",
    "near_duplicate": "record whose prompt is nearly that of another one",
    "email": "e-mail address",
    "card_number": "payment card number with a right check digit",
    "id_number": "Chinese identity number with a right check character",
    "mobile_number": "Chinese mobile number",
    "encoding_gb18030": "row of a file that is GB18030, not UTF-8; read as such",
    "unused_column": "column that nothing reads",
    "label_not_in_test": "label of training rows that no test row has",
}

_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# What Windows-1252 or Latin-1 makes of the bytes 80 to BF, which go on a character in UTF-8.
_TAIL = "\u00a1-\u00aa\u00ac-\u00ba\u00bc-\u00bf€‚ƒ„†‡ˆ‰Š‹ŒŽ•˜™š›œžŸ"
_MOJIBAKE = re.compile(
    f"[ÃÂ][{_TAIL}]|â€|ï»¿|ï¿½|[ã-é](?:[{_TAIL}\u00a0\u00ab\u00bb‘’“”–—…]){{2}}|锟斤拷|锟斤|烫烫烫|屯屯屯"
)
_WIDE_RUN = re.compile(r"[^\x00-\x7f]{6,}")


def normalised(text: str) -> str:
    """Text as prompts are compared: compatibility forms, case and runs of white space do not count.

    >>> normalised("Ｈow  much\\n?")
    'how much ?'
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def prompt_key(record: Record) -> str:
    """What two records share that ask the same."""
    return "\x1e".join(f"{message.role}\x1f{normalised(message.content)}" for message in record.prompt)


def empty(record: Record, _: DataRecipe) -> str:
    """A blank answer, or a blank turn of the user or the model before it."""
    if not record.answer.strip():
        return "the answer is empty"
    blank = [message.role for message in record.prompt if message.role in ("user", "assistant") and _blank(message)]
    return f"a turn of the {blank[0]} is empty" if blank else ""


def _blank(message: Message) -> bool:
    return not message.content.strip()


def broken_encoding(record: Record, _: DataRecipe) -> str:
    """Replacement or control characters, or text that was decoded with the wrong encoding."""
    return next((fault for message in record.messages if (fault := text_fault(message.content))), "")


def text_fault(text: str) -> str:
    """What is broken in a text, or nothing.

    >>> text_fault("itâ€™s"), text_fault("naïve café"), text_fault("浣犲ソ锛屼笘鐣")[:9]
    ("mojibake: 'â€'", '', 'UTF-8 rea')
    """
    if "\ufffd" in text:
        return "replacement character U+FFFD"
    if found := _CONTROL.search(text):
        return f"control character U+{ord(found.group()):04X}"
    if found := _MOJIBAKE.search(text):
        return f"mojibake: {found.group()!r}"
    if any(_is_utf8_read_as_gb18030(run) for run in _WIDE_RUN.findall(text)):
        return "UTF-8 read as GB18030"
    return ""


def _is_utf8_read_as_gb18030(run: str) -> bool:
    # A lost byte at the end of the run is what cut-off mojibake looks like; one at the start would not be UTF-8.
    octets = run.encode("gb18030", "ignore")
    for cut in range(3):
        try:
            text = octets[: len(octets) - cut].decode()
        except UnicodeDecodeError:
            continue
        return sum("\u4e00" <= character <= "\u9fff" for character in text) * 2 >= len(text)
    return False


def too_short(record: Record, recipe: DataRecipe) -> str:
    """An answer under the recipe's length; with the default of one character a one-word label is long enough."""
    length = len(record.answer.strip())
    return f"answer of {length} characters, at least {recipe.min_characters}" if length < recipe.min_characters else ""


def too_long(record: Record, recipe: DataRecipe) -> str:
    """All turns together over the recipe's length."""
    length = sum(len(message.content) for message in record.messages)
    return f"{length:,} characters, at most {recipe.max_characters:,}" if length > recipe.max_characters else ""


RECORD_CHECKS: dict[str, Callable[[Record, DataRecipe], str]] = {
    check.__name__: check for check in (broken_encoding, empty, too_short, too_long)
}


def contradictory(records: Sequence[Record]) -> dict[int, str]:
    """Positions of the records that contradict others on the same prompt, with what they contradict.

    Answers are compared normalised. Where one answer has more than half of a prompt's records (duplicates count), it is
    believed and the others are bad; where none has, nobody can say which is right and all of them are bad.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for place, record in enumerate(records):
        groups[prompt_key(record)].append(place)
    bad: dict[int, str] = {}
    for places in groups.values():
        answers = {place: normalised(records[place].answer) for place in places}
        votes = Counter(answers.values())
        if len(votes) == 1:
            continue
        leading, most = votes.most_common(1)[0]
        believed = leading if 2 * most > len(places) else None
        first = {answer: place for place, answer in reversed(answers.items())}
        for place, answer in answers.items():
            if answer != believed:
                other = first[believed] if believed else next(first[one] for one in first if one != answer)
                said = f"{most} of {len(places)} answer as" if believed else "another is at"
                bad[place] = f"{len(votes)} answers to the same prompt; {said} {records[other].source}"
    return bad


def exact_duplicates(records: Sequence[Record]) -> dict[int, str]:
    """Positions of the records that repeat an earlier one, with where that one is."""
    first: dict[str, str] = {}
    repeated: dict[int, str] = {}
    for place, record in enumerate(records):
        if record.id in first:
            repeated[place] = f"same as {first[record.id]}"
        else:
            first[record.id] = record.source
    return repeated
