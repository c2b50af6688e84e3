"""Lengths in tokens and a model's context in, a refusal that names the row out: before training, and before asking."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from tasks.errors import InvalidData

CONTEXTS = ("max_position_embeddings", "max_seq_len", "seq_length")


class RowLength(NamedTuple):
    """A row's prompt, and its prompt with its reference, in tokens; `source` is where the row was read."""

    id: str
    source: str
    prompt: int
    whole: int


def context_of(config: Any) -> int:
    """The tokens of prompt and answer together that a model reads, by its configuration; 0 where it names no limit."""
    decoder = config.get_text_config(decoder=True)
    return next((int(size) for name in CONTEXTS if (size := getattr(decoder, name, None))), 0)


def check_room(suite: str, rows: Sequence[RowLength], new_tokens: int, context: int) -> None:
    """Raise InvalidData for the row that needs most, where a prompt with its answer is more than the model reads."""
    longest = max(rows, key=lambda row: max(row.prompt + new_tokens, row.whole), default=None)
    if longest is None or not context or max(longest.prompt + new_tokens, longest.whole) <= context:
        return
    source = f" ({longest.source})" if longest.source else ""
    raise InvalidData(
        f"suite {suite!r}, row {longest.id}{source}: the prompt has {longest.prompt} tokens, {longest.whole} with its "
        f"reference, and the answer may have {new_tokens} (evaluation.max_new_tokens), but this base model reads "
        f"{context}. Lower data.max_characters or evaluation.max_new_tokens."
    )
