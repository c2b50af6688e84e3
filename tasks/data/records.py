"""Chat turns in, one record with an identity of its own out; a split file holds one record a line."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from tasks.steps.store import digest

Role = Literal["system", "user", "assistant", "tool"]


class Message(BaseModel):
    """One turn. A user turn made of an instruction and an input keeps both, so that a template can place them."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    role: Role
    content: str
    instruction: str = ""
    input: str = ""


class Record(BaseModel):
    """One instruction row as messages; the last one is the answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    id: str = Field(description="First 16 hex digits of the digest of roles and contents.")
    messages: tuple[Message, ...] = Field(min_length=2)
    columns: dict[str, str] = Field(default={}, description="Columns kept to score slices by.")
    source: str = Field(description="Where the row was read: file.jsonl:12, or array.json:#12.")

    @classmethod
    def of(cls, messages: tuple[Message, ...], source: str, columns: dict[str, str] | None = None) -> Self:
        """A record with the id that its messages give it.

        >>> turns = (Message(role="user", content="2+2?"), Message(role="assistant", content="4"))
        >>> Record.of(turns, "a.jsonl:1").id == Record.of(turns, "b.csv:7").id
        True
        """
        identity = digest([[message.role, message.content] for message in messages])[:16]
        return cls(id=identity, messages=messages, columns=columns or {}, source=source)

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the last answer."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The content of the last message."""
        return self.messages[-1].content

    def line(self) -> str:
        """This record as one line of a split file, without the line's end."""
        return self.model_dump_json(exclude_defaults=True)


def user_message(instruction: str, material: str) -> Message:
    """A user turn made of an instruction and the material it is about; either may be empty.

    >>> user_message("Translate.", "Guten Tag").content
    'Translate.\\n\\nGuten Tag'
    """
    content = "\n\n".join(part for part in (instruction, material) if part)
    return Message(role="user", content=content, instruction=instruction, input=material)


def write_split(path: Path, records: list[Record]) -> None:
    """Write records as JSON lines, UTF-8."""
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(record.line() + "\n" for record in records)


def load_split(path: Path) -> list[Record]:
    """Read the records of a split file that `write_split` wrote."""
    with path.open(encoding="utf-8", newline="\n") as stream:
        return [Record.model_validate_json(line) for line in stream]
