"""Records in, tokenised examples out: `<split>.parquet` with ids and labels, and what was cut."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.data.records import Record
from tasks.errors import InvalidData
from tasks.prompts import Example, PromptRenderer
from tasks.steps.progress import Advance, silent


@dataclass(frozen=True)
class TokenisedSplit:
    """Counts of one split: examples kept, tokens, tokens with a label, answers cut, prompts too long to train on."""

    rows: int
    tokens: int
    trained_tokens: int
    truncated: int
    dropped: int


def messages_of(record: Record) -> list[dict[str, str]]:
    """A record's chat turns as the template wants them."""
    return [message.model_dump(exclude_defaults=True) for message in record.messages]


def tokenise(
    records: Sequence[Record], renderer: PromptRenderer, advance: Advance = silent
) -> Iterator[tuple[Record, Example]]:
    """Render and tokenise records one by one."""
    for record in records:
        yield record, renderer.example(messages_of(record))
        advance(1)


def write_split(examples: Sequence[tuple[Record, Example]], path: Path, split: str, max_length: int) -> TokenisedSplit:
    """Write the examples that have something to train on as Parquet (id, input_ids, labels).

    Raises InvalidData when a split that had records has no example left.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = [(record, example) for record, example in examples if example.trained_tokens]
    if examples and not kept:
        raise InvalidData(
            f"{split}: every prompt alone is longer than prompt.max_length ({max_length} tokens); raise it or "
            f"shorten the prompts."
        )
    table = pa.table(
        {
            "id": pa.array([record.id for record, _ in kept], pa.string()),
            "input_ids": pa.array([example.input_ids for _, example in kept], pa.list_(pa.int32())),
            "labels": pa.array([example.labels for _, example in kept], pa.list_(pa.int32())),
        }
    )
    pq.write_table(table, path)
    return TokenisedSplit(
        rows=len(kept),
        tokens=sum(len(example.input_ids) for _, example in kept),
        trained_tokens=sum(example.trained_tokens for _, example in kept),
        truncated=sum(example.truncated for _, example in kept),
        dropped=len(examples) - len(kept),
    )
