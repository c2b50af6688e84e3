"""A recipe and its base's folder in, the packs that its training goes through out: from a sample of the records."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.errors import InvalidData
from tasks.recipe.stages import DataRecipe, Recipe

if TYPE_CHECKING:
    from tasks.modeling.memory import PackSize

SAMPLED, LARGEST_FILE = 200, 64 << 20
"""Records a source that lengths are measured on, and bytes, unpacked, of a file that is read for them."""


@dataclass(frozen=True)
class Workload:
    """What the records ask of a training: the largest pack, and how many packs it goes through; 0 where unknown."""

    pack: "PackSize"
    packs: float
    measured: bool
    """Whether lengths come from the records; otherwise they are the longest, all with a label."""


def workload(recipe: Recipe, folder: Path) -> Workload:
    """The pack and the number of packs, from a sample of the first training source's records, where it is a file.

    Where it cannot be read here, every token is taken to carry a label, which takes the most memory.
    """
    from tasks.modeling.memory import PackSize

    tokens = recipe.training.batch_tokens
    lengths = _sample(recipe, folder)
    if lengths is None:
        return Workload(PackSize(tokens, tokens), 0.0, measured=False)
    records, mean, share = lengths
    kept = records * (1 - (0 if recipe.data.validation else recipe.data.validation_fraction))
    kept *= 1 - (0 if recipe.data.test else recipe.data.test_fraction)
    kept = min(kept, recipe.data.limit or kept)
    packs = recipe.training.epochs * kept * mean / tokens
    limit = recipe.training.max_steps * recipe.training.gradient_accumulation
    pack = PackSize(tokens, round(share * tokens), max(1, round(tokens / mean)))
    return Workload(pack, min(packs, limit or packs), measured=True)


def _sample(recipe: Recipe, folder: Path) -> tuple[int, float, float] | None:
    """Records in the training sources, their mean length in tokens and their share of labels."""
    from transformers import AutoTokenizer

    from tasks.data.tokenisation import messages_of
    from tasks.prompts import PromptRenderer, stop_ids

    found = _records(recipe.data)
    if found is None:
        return None
    count, records = found
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=recipe.base.trust_remote_code)
    renderer = PromptRenderer(tokenizer, recipe.prompt, stop_ids(folder))
    examples = [renderer.example(messages_of(record)) for record in records]
    tokens = sum(len(example.input_ids) for example in examples)
    return count, tokens / len(examples), sum(example.trained_tokens for example in examples) / tokens


def _records(data: DataRecipe) -> tuple[int, list[Any]] | None:
    """How many rows the training sources have, and records from all over them; None where a file is large or away."""
    from tasks.data import formats, reading, sources
    from tasks.data.records import Record

    written = [source for one in data.train for source in sources.find(one)]
    files = [source for source in written if isinstance(source, Path)]
    if len(files) < len(written) or any(reading.unpacked_size(file, LARGEST_FILE) > LARGEST_FILE for file in files):
        return None
    records = []
    count = 0
    for source in files:
        found = reading.read(source, formats.columns_read(data))
        rows = [row for row in found.rows if isinstance(row.values, dict) and not row.fault]
        count += len(rows)
        chosen = formats.detect([row.values for row in rows], data, str(source), found.unread)
        for row in rows[:: max(1, len(rows) // SAMPLED)]:
            try:
                records.append(Record.of(chosen.parse(row.values), row.source))
            except InvalidData:
                # It goes into quarantine later; a sample can do without it.
                continue
    return (count, records) if records else None
