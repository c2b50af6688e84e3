"""Records and their groups in, a split for each out: a function of content, so that new data move nothing."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from tasks.data.checks import Offence, prompt_key
from tasks.data.duplicates import groups, nearest, prompt_of
from tasks.data.records import Record
from tasks.data.sources import SplitRole
from tasks.errors import InvalidData
from tasks.recipe.stages import DataRecipe
from tasks.steps.progress import Advance, silent


def share(identity: str, seed: int) -> float:
    """A number from 0 to 1 that an identity and a seed always give."""
    return int(hashlib.sha256(f"{seed}:{identity}".encode()).hexdigest()[:16], 16) / 2**64


def near_groups(records: Sequence[Record], least: float, advance: Advance = silent) -> list[list[int]]:
    """Positions of the records, near-duplicates together, each group once. Advances once a record."""
    members: dict[int, list[int]] = defaultdict(list)
    for place, first in enumerate(groups([prompt_of(record) for record in records], least, advance)):
        members[first].append(place)
    return list(members.values())


def assign(
    records: Sequence[Record], grouped: Sequence[Sequence[int]], test: float, validation: float, seed: int
) -> list[SplitRole]:
    """The split of every record: that of its group, which the group's smallest record id decides.

    A record keeps its split when data arrive, unless a near-duplicate with a smaller id arrives for its group: then the
    group moves as one, because keeping near-duplicates together comes first.
    """
    chosen: list[SplitRole] = ["train"] * len(records)
    for places in grouped:
        where = share(min(records[place].id for place in places), seed)
        if where < test + validation:
            for place in places:
                chosen[place] = "test" if where < test else "validation"
    return chosen


def leaks(records: Sequence[Record], held_out: Sequence[Record], least: float) -> dict[int, str]:
    """Positions of the records whose prompt is, or nearly is, one of the held-out prompts; with which one."""
    keys = {prompt_key(record): record.source for record in held_out}
    found = {
        place: f"same prompt as held-out {keys[key]}"
        for place, record in enumerate(records)
        if (key := prompt_key(record)) in keys
    }
    rest = [place for place in range(len(records)) if place not in found]
    near = nearest([prompt_of(records[place]) for place in rest], [prompt_of(record) for record in held_out], least)
    found |= {rest[place]: f"nearly the prompt of held-out {held_out[other].source}" for place, other in near.items()}
    return found


def limited(records: Sequence[Record], limit: int) -> list[Record]:
    """At most `limit` records (0: all), always the same ones of the same records, whatever their order."""
    return sorted(records, key=lambda record: record.id)[:limit] if limit else list(records)


def refuse_empty(rows: dict[SplitRole, int], recipe: DataRecipe, offences: Sequence[Offence] = ()) -> None:
    """Raise InvalidData when a split that somebody needs has no rows: what gives it some, and the first bad row."""
    total = sum(rows.values())
    bad = (
        f" {len(offences)} rows were quarantined, the first is {offences[0].source}: {offences[0].detail}."
        if offences
        else ""
    )
    if not rows["train"]:
        raise InvalidData(f"the training split has no rows of {total} good records; add records to data.train.{bad}")
    if not rows["test"]:
        wanted = _remedy("test", bool(recipe.test), recipe.test_fraction, total)
        raise InvalidData(f"the test split has no rows of {total} good records; {wanted}.{bad}")
    if not rows["validation"] and (recipe.validation or recipe.validation_fraction > 0):
        wanted = _remedy("validation", bool(recipe.validation), recipe.validation_fraction, total)
        raise InvalidData(f"the validation split has no rows of {total} good records; {wanted}.{bad}")


def _remedy(name: SplitRole, given: bool, fraction: float, total: int) -> str:
    if given:
        return f"no row of data.{name} passed the checks: see the findings, or give other rows"
    return f"raise data.{name}_fraction (now {fraction}, of {total} records), add records, or name rows in data.{name}"
