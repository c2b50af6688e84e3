"""What a version's tags claim, compared with this machine's ledger; without importing MLflow."""

from typing import Any, NamedTuple

from tasks.errors import StateUnusable
from tasks.registry import ledger
from tasks.registry.lookup import Version, get_by_alias
from tasks.steps.state import State


class Claim(NamedTuple):
    """The ledger's entry that a version's decision is from, or None, and the same in words; empty for no decision."""

    entry: dict[str, Any] | None
    text: str


class LookedUp(NamedTuple):
    """A version that an alias points at, and what the ledger has of its decision."""

    version: Version
    claim: Claim


def looked_up(name: str, alias: str, state: State) -> LookedUp:
    """What `tuneline lookup` shows; raises UnknownVersion as `lookup.named` does."""
    version = get_by_alias(state.tracking_uri, name, alias)
    return LookedUp(version, in_ledger(version, state))


def in_ledger(version: Version, state: State) -> Claim:
    """The decision that a version's tags or description claim, as the ledger has it: anybody may write a tag."""
    decision = version.tags.get("decision", "")
    if not decision and not version.description.startswith("Promoted to "):
        return Claim(None, "")
    try:
        entries = ledger.entries(state.ledger)
    except StateUnusable as fault:
        return Claim(None, str(fault))
    said_yes = decision.startswith("yes") if decision else True
    wanted = ("decision", version.name, version.version, said_yes)
    for entry in reversed(entries):
        known = (entry["kind"], entry.get("name"), entry.get("version"), entry.get("promote"))
        # Decisions of earlier releases do not name their registry.
        if known == wanted and ("registry" not in entry or ledger.is_of(entry, state.tracking_uri)):
            shown = {key: entry[key] for key in ("n", "at", "promote", "target", "forced", "basis") if key in entry}
            return Claim(shown, f"entry {entry['n']}, {entry['at']}")
    return Claim(
        None,
        f"the ledger of this machine has no such decision ({state.ledger}): it was made elsewhere, or the tags were "
        "written by something else",
    )
