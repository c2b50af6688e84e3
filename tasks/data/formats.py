"""Rows in, messages out: the format is detected by the columns, or told, and said in words."""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from tasks.data.records import Message, Role, user_message
from tasks.errors import InvalidData
from tasks.output.escaping import LISTED, listed, printable, shortened
from tasks.recipe.stages import ColumnMapping, DataFormat, DataRecipe

Values = dict[str, Any]
_SURROGATE = re.compile("[\ud800-\udfff]")

CHAT_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
PAIRS = (("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
NEEDS = {
    DataFormat.alpaca: "instruction, input (may be missing) and output or response",
    DataFormat.messages: "messages: a list of {role, content}",
    DataFormat.sharegpt: "conversations: a list of {from, value}",
    DataFormat.prompt_completion: "prompt and completion, prompt and response, or question and answer",
}


class InvalidRecord(InvalidData):
    """A row that does not have the shape its format needs; the text says what is wrong with it."""


class Format(NamedTuple):
    """One way to make messages of a row: its description for the report, the columns it reads, the parser."""

    kind: DataFormat
    columns: tuple[str, ...]
    parse: Callable[[Values], tuple[Message, ...]]

    def __str__(self) -> str:
        return f"{self.kind.value} ({', '.join(self.columns)})"


def detect(rows: Sequence[Any], recipe: DataRecipe, name: str, unread: Iterable[str] = ()) -> Format:
    """The format of a source's rows: the one that most of the first two hundred have the columns for.

    Raises InvalidData when none of them has, with the columns found, also those that were not read, and what every
    format needs.
    """
    looked_at = [row for row in rows[:200] if isinstance(row, dict)]
    found = Counter(column for row in looked_at for column in row)
    scored = [(sum(_fits(row, candidate) for row in looked_at), candidate) for candidate in _candidates(recipe)]
    best, chosen = max(scored, key=lambda pair: pair[0])
    if best:
        return chosen
    raise InvalidData(_wrong_columns([*found, *unread], recipe, name))


def _candidates(recipe: DataRecipe) -> list[Format]:
    """The formats to choose from, the more particular first: on a tie the first one wins."""
    mapped = [_columns(recipe.columns)] if recipe.columns.output else []
    if recipe.format is DataFormat.columns:
        if not mapped:
            raise InvalidData("data.columns.output: the format 'columns' needs at least the column of the answer.")
        return mapped
    known = [
        Format(DataFormat.messages, ("messages",), _messages),
        Format(DataFormat.sharegpt, ("conversations",), _sharegpt),
        *(Format(DataFormat.alpaca, ("instruction", "input", out), _alpaca(out)) for out in ("output", "response")),
        *(Format(DataFormat.prompt_completion, pair, _pair(*pair)) for pair in PAIRS),
    ]
    return (
        [*mapped, *known] if recipe.format is DataFormat.auto else [one for one in known if one.kind is recipe.format]
    )


def _fits(row: Values, candidate: Format) -> bool:
    optional = {"input"} if candidate.kind is DataFormat.alpaca else set()
    return all(column in row for column in candidate.columns if column not in optional)


def _wrong_columns(found: Sequence[str], recipe: DataRecipe, name: str) -> str:
    have = listed(found) if found else "none: the rows are not objects"
    if recipe.format is DataFormat.columns or recipe.columns.output:
        wanted = f"data.columns names {', '.join(_columns(recipe.columns).columns)}"
    elif recipe.format is DataFormat.auto:
        wanted = "; ".join(f"{kind.value} needs {needs}" for kind, needs in NEEDS.items())
    else:
        wanted = f"{recipe.format.value} needs {NEEDS[recipe.format]}"
    return (
        f"{name}: the columns found are {have}; {wanted}. "
        "For columns of your own set data.columns, e.g. columns: {input: text, output: label}."
    )


def columns_read(recipe: DataRecipe) -> set[str]:
    """Every column that a format of this recipe may read; a table that has others need not be read whole."""
    formats = {column for candidate in _candidates(recipe) for column in candidate.columns}
    return {*formats, *recipe.slice_columns, "system"}


def unused_columns(rows: Iterable[Any], unread: Iterable[str], chosen: Format, recipe: DataRecipe) -> list[str]:
    """Columns that a source has and that neither the format nor the recipe reads; of many, the first and a count."""
    read = {*chosen.columns, *recipe.slice_columns, "system"}
    unused = sorted({*unread, *(column for row in rows if isinstance(row, dict) for column in row)} - read)
    more = len(unused) - LISTED
    return [printable(name) for name in unused[:LISTED]] + ([f"and {more:,} more"] if more > 0 else [])


def text(value: Any) -> str:
    """A cell as text: numbers as written, nothing for None; raises InvalidRecord for lists and objects.

    >>> text(3), text(None), text(" yes ")
    ('3', '', ' yes ')
    """
    if isinstance(value, str):
        # Half of a surrogate pair has no bytes; the check on broken text finds its replacement.
        return _SURROGATE.sub("\ufffd", value)
    # Tables written by other tools say "missing" with NaN.
    if value is None or value != value:
        return ""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    raise InvalidRecord(f"text expected, found {type(value).__name__}")


def _cell(row: Values, column: str, needed: bool = True) -> str:
    if column not in row:
        if needed:
            raise InvalidRecord(f"no column {column!r}")
        return ""
    try:
        return text(row[column])
    except InvalidRecord as fault:
        raise InvalidRecord(f"{column}: {fault}") from None


def _system(row: Values, column: str = "system") -> tuple[Message, ...]:
    content = _cell(row, column, needed=False) if column else ""
    return (Message(role="system", content=content),) if content.strip() else ()


def _answer(content: str) -> Message:
    return Message(role="assistant", content=content)


def _alpaca(output: str) -> Callable[[Values], tuple[Message, ...]]:
    def parse(row: Values) -> tuple[Message, ...]:
        user = user_message(_cell(row, "instruction"), _cell(row, "input", needed=False))
        return (*_system(row), user, _answer(_cell(row, output)))

    return parse


def _pair(prompt: str, completion: str) -> Callable[[Values], tuple[Message, ...]]:
    def parse(row: Values) -> tuple[Message, ...]:
        user = Message(role="user", content=_cell(row, prompt))
        return (*_system(row), user, _answer(_cell(row, completion)))

    return parse


def _columns(mapping: ColumnMapping) -> Format:
    if not (mapping.instruction or mapping.input):
        raise InvalidData("data.columns: neither instruction nor input names a column; the prompt would be empty.")

    def parse(row: Values) -> tuple[Message, ...]:
        instruction = _cell(row, mapping.instruction) if mapping.instruction else mapping.instruction_text
        material = _cell(row, mapping.input) if mapping.input else ""
        if not (material.strip() or (mapping.instruction and instruction.strip())):
            instruction = ""
        return (*_system(row, mapping.system), user_message(instruction, material), _answer(_cell(row, mapping.output)))

    named = (mapping.system, mapping.instruction, mapping.input, mapping.output)
    return Format(DataFormat.columns, tuple(column for column in named if column), parse)


def _messages(row: Values) -> tuple[Message, ...]:
    return _turns(row, "messages", "role", "content")


def _sharegpt(row: Values) -> tuple[Message, ...]:
    return _turns(row, "conversations", "from", "value")


def _turns(row: Values, column: str, role_key: str, content_key: str) -> tuple[Message, ...]:
    turns = row.get(column)
    if not isinstance(turns, list) or not turns:
        raise InvalidRecord(f"{column}: a list of turns expected, found {type(turns).__name__ if turns else 'nothing'}")
    messages = [_turn(turn, f"{column}[{place}]", role_key, content_key) for place, turn in enumerate(turns)]
    if messages[0].role != "system":
        messages = [*_system(row), *messages]
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        raise InvalidRecord(f"{column}: a system turn after the first")
    if roles[-1] != "assistant":
        raise InvalidRecord(f"{column}: the last turn is from {roles[-1]}, not an answer")
    first = next(role for role in roles if role != "system")
    if first != "user":
        raise InvalidRecord(f"{column}: the conversation begins with {first}, not with the user")
    return tuple(messages)


def _turn(turn: Any, place: str, role_key: str, content_key: str) -> Message:
    if not isinstance(turn, dict) or role_key not in turn or content_key not in turn:
        raise InvalidRecord(f"{place}: an object with {role_key!r} and {content_key!r} expected")
    role = CHAT_ROLES.get(str(turn[role_key]).lower())
    if role is None:
        raise InvalidRecord(f"{place}: unknown role {shortened(turn[role_key])}; known are {', '.join(CHAT_ROLES)}")
    return Message(role=role, content=_cell(turn, content_key))
