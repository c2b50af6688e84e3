"""Prompts in, groups of near-duplicates out: MinHash finds candidates, the exact similarity decides.

Shingles are three characters wide, which serves Chinese as well as English. The signatures and the index are
datasketch's (20,000 short prompts in seconds); what is alike is decided here, on the shingles themselves, so a result
never depends on luck in hashing except for pairs right at the threshold that no index entry brings together.
Source: Broder 1997, On the resemblance and containment of documents; Leskovec, Mining of Massive Datasets, ch. 3.
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tasks.data.checks import normalised
from tasks.data.records import Record
from tasks.progress import Advance, silent

if TYPE_CHECKING:
    from datasketch import MinHash

WIDTH = 3
PERMUTATIONS = 96
SHORT_INPUT = 20
"""Characters; a shorter input is compared together with its instruction when candidates are looked for."""

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
    main: Shingles
    instruction: Shingles

    def signed(self, short: bool) -> Iterator[bytes]:
        yield from (shingle.encode() for shingle in self.main)
        if short:
            yield from (b"\x1d" + shingle.encode() for shingle in self.instruction)


def _alike(one: _Cut, other: _Cut, least: float) -> bool:
    return similarity(one.main, other.main) >= least and similarity(one.instruction, other.instruction) >= least


class _Index:
    """Prompts by their signatures: answers which of those added are at least this alike."""

    def __init__(self, least: float) -> None:
        from datasketch import MinHashLSH

        self.least = least
        # Looked for a little below the threshold: at the threshold itself an index misses every second pair.
        self._lsh = MinHashLSH(threshold=max(least - 0.1, 0.3), num_perm=PERMUTATIONS)
        self._cuts: list[_Cut] = []

    def add(self, cut: _Cut, signature: "MinHash") -> None:
        self._lsh.insert(len(self._cuts), signature, check_duplication=False)
        self._cuts.append(cut)

    def candidates(self, signature: "MinHash") -> list[int]:
        return sorted(self._lsh.query(signature))

    def alike(self, cut: _Cut, place: int) -> bool:
        return _alike(cut, self._cuts[place], self.least)


def _signed(prompts: Sequence[Prompt]) -> Iterator[tuple[_Cut, Any]]:
    from datasketch import MinHash

    cuts = (_Cut(shingles(prompt.main), shingles(prompt.instruction)) for prompt in prompts)
    pairs = [(cut, len(prompt.main) < SHORT_INPUT) for cut, prompt in zip(cuts, prompts, strict=True)]
    signatures = MinHash.generator(
        (list(cut.signed(short)) for cut, short in pairs), num_perm=PERMUTATIONS, seed=1, hashfunc=zlib.crc32
    )
    for (cut, _), signature in zip(pairs, signatures, strict=True):
        yield cut, signature


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
    for place, (cut, signature) in enumerate(_signed(distinct)):
        for other in index.candidates(signature):
            one, two = root(place), root(other)
            if one != two and index.alike(cut, other):
                parent[max(one, two)] = min(one, two)
        index.add(cut, signature)
        advance(1)
    advance(len(prompts) - len(distinct))
    number = {prompt: place for place, prompt in enumerate(distinct)}
    return [first[distinct[root(number[prompt])]] for prompt in prompts]


def nearest(prompts: Sequence[Prompt], held_out: Sequence[Prompt], least: float) -> dict[int, int]:
    """For every prompt that is at least this like a held-out one: its position, and that of the held-out prompt."""
    index = _Index(least)
    for cut, signature in _signed(held_out):
        index.add(cut, signature)
    found: dict[int, int] = {}
    for place, (cut, signature) in enumerate(_signed(prompts)):
        like = next((other for other in index.candidates(signature) if index.alike(cut, other)), None)
        if like is not None:
            found[place] = like
    return found
