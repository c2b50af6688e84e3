"""Prompts in, groups of near-duplicates out: MinHash finds candidates, the exact similarity decides.

Shingles are three characters wide, which serves Chinese as well as English. The signatures and the index are
datasketch's (20,000 short prompts in seconds); what is alike is decided here, on the shingles themselves, so a result
never depends on luck in hashing except for pairs right at the threshold that no index entry brings together.
Source: Broder 1997, On the resemblance and containment of documents; Leskovec, Mining of Massive Datasets, ch. 3.
"""

import itertools
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from tasks.data.checks import normalised
from tasks.data.main_memory import MemoryWatch
from tasks.data.records import Record
from tasks.steps.progress import Advance, silent

WIDTH = 3
PERMUTATIONS = 96
MANY = 50
"""Candidates by the main part from which the instructions are looked up too."""

Shingles = frozenset[str]


class Prompt(NamedTuple):
    """What of a record is compared: two prompts are as alike as the less alike of their two parts.

    So rows that share one long instruction are told apart by their inputs, and the other way round.
    """

    main: str
    instruction: str


def prompt_of(record: Record) -> Prompt:
    """The comparable text of a record: normalised, without the system message, without punctuation or spaces."""
    turns = [message for message in record.prompt if message.role != "system"]
    if len(turns) == 1 and turns[0].input.strip():
        return Prompt(_letters(turns[0].input), _letters(turns[0].instruction))
    return Prompt("\x1e".join(_letters(turn.content) for turn in turns), "")


def _letters(text: str) -> str:
    plain = normalised(text)
    return "".join(character for character in plain if character.isalnum()) or plain


def shingles(text: str) -> Shingles:
    """Every run of three characters; a shorter text is its own only shingle.

    >>> sorted(shingles("abcd"))
    ['abc', 'bcd']
    """
    return frozenset(text[start : start + WIDTH] for start in range(max(1, len(text) - WIDTH + 1)))


def similarity(one: Shingles, other: Shingles) -> float:
    """Jaccard similarity: shared shingles over all shingles."""
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


class _Cut(NamedTuple):
    """A prompt as the index knows it: the shingles and the signature of each part."""

    main: Shingles
    instruction: Shingles
    main_signature: Any
    instruction_signature: Any


class _Index:
    """Prompts by their signatures: says which of those added may be at least this alike, and which are."""

    def __init__(self, least: float) -> None:
        from datasketch import MinHashLSH

        self._least = least
        # Looked for a little below the threshold: at the threshold itself an index misses every second pair.
        near = max(least - 0.1, 0.3)
        self._mains = MinHashLSH(threshold=near, num_perm=PERMUTATIONS)
        self._instructions = MinHashLSH(threshold=near, num_perm=PERMUTATIONS)
        self._cuts: list[_Cut] = []

    def add(self, cut: _Cut) -> None:
        """Add a prompt; its position is how many were added before."""
        self._mains.insert(len(self._cuts), cut.main_signature, check_duplication=False)
        self._instructions.insert(len(self._cuts), cut.instruction_signature, check_duplication=False)
        self._cuts.append(cut)

    def candidates(self, cut: _Cut) -> list[int]:
        """Positions of the prompts that may be alike, in order."""
        found = set(self._mains.query(cut.main_signature))
        # Many prompts about one text differ in the instruction, or they are really alike.
        if len(found) > MANY:
            found &= set(self._instructions.query(cut.instruction_signature))
        return sorted(found)

    def alike(self, cut: _Cut, place: int) -> bool:
        """Whether both parts are alike enough, measured on the shingles."""
        other = self._cuts[place]
        return (
            similarity(cut.main, other.main) >= self._least
            and similarity(cut.instruction, other.instruction) >= self._least
        )


def _cuts(prompts: Sequence[Prompt]) -> Iterator[_Cut]:
    from datasketch import MinHash

    def signatures(parts: Iterable[Shingles]) -> Iterator[Any]:
        encoded = ([shingle.encode() for shingle in part] for part in parts)
        return iter(MinHash.generator(encoded, num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32))

    instructions = list(dict.fromkeys(prompt.instruction for prompt in prompts))
    cut_instructions = [shingles(instruction) for instruction in instructions]
    known = dict(zip(instructions, zip(cut_instructions, signatures(cut_instructions), strict=True), strict=True))
    mains, again = itertools.tee(shingles(prompt.main) for prompt in prompts)
    watch = MemoryWatch()
    for prompt, main, signature in zip(prompts, mains, signatures(again), strict=True):
        # Without memory NumPy ends the process in the middle of a signature.
        watch(len(prompt.main))
        instruction, instruction_signature = known[prompt.instruction]
        yield _Cut(main, instruction, signature, instruction_signature)


def groups(prompts: Sequence[Prompt], least: float, advance: Advance = silent) -> list[int]:
    """For every prompt the position of the first member of its group; groups are closed under likeness.

    `least` is the Jaccard similarity (0 to 1) from which two prompts are alike; equal prompts are always in one group.
    Advances once a prompt.
    """
    first: dict[Prompt, int] = {}
    for place, prompt in enumerate(prompts):
        first.setdefault(prompt, place)
    distinct = list(first)
    parent = list(range(len(distinct)))

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = parent[parent[place]]
            place = parent[place]
        return place

    index = _Index(least)
    for place, cut in enumerate(_cuts(distinct)):
        for other in index.candidates(cut):
            one, two = root(place), root(other)
            if one != two and index.alike(cut, other):
                parent[max(one, two)] = min(one, two)
        index.add(cut)
        advance(1)
    advance(len(prompts) - len(distinct))
    number = {prompt: place for place, prompt in enumerate(distinct)}
    return [first[distinct[root(number[prompt])]] for prompt in prompts]


def nearest(prompts: Sequence[Prompt], held_out: Sequence[Prompt], least: float) -> dict[int, int]:
    """For every prompt that is at least this like a held-out one: its position, and that of the held-out prompt."""
    index = _Index(least)
    for cut in _cuts(held_out):
        index.add(cut)
    found: dict[int, int] = {}
    for place, cut in enumerate(_cuts(prompts)):
        like = next((other for other in index.candidates(cut) if index.alike(cut, other)), None)
        if like is not None:
            found[place] = like
    return found
