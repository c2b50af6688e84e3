"""What the ledger says of an alias: its entries in, who moved it and on what evidence out."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.artifacts import Basis
from tasks.registry.ledger import is_of

Entries = Sequence[Mapping[str, Any]]


def of_registry(entries: Entries, tracking_uri: str) -> Entries:
    """The decisions and moves of one registry, and what closed the moves; entries of other registries are left out."""
    numbers = {entry["n"] for entry in entries if is_of(entry, tracking_uri)}
    return [entry for entry in entries if entry["n"] in numbers or entry.get("of") in numbers]


def got_there(entries: Entries, name: str, version: int, alias: str, basis: Basis) -> bool:
    """Whether a yes on this report and policy moved the alias to the version, moves that a crash cut short left out."""
    done = {entry["of"] for entry in entries if entry["kind"] == "done"}
    wanted = (name, version, alias, True, basis.report, basis.policy_digest)
    decided = False
    for entry in entries:
        if entry["kind"] == "decision" and (entry["name"], entry["version"]) == (name, version):
            known = entry.get("basis", {})
            subject = (name, version, entry["target"], entry["promote"])
            decided = (*subject, known.get("report"), known.get("policy_digest")) == wanted
        elif decided and entry["n"] in done and _moved_to(entry, name, alias) == version:
            return True
    return False


def moved_by_retraining(entries: Entries, name: str, alias: str, now: int) -> bool:
    """Whether the alias is where a retraining put it last: no person has moved it since, by command or by hand."""
    for entry in reversed(entries):
        if (to := _moved_to(entry, name, alias)) is not None:
            return entry.get("flow") == "retrain" and to == now
    return False


def _moved_to(entry: Mapping[str, Any], name: str, alias: str) -> int | None:
    return next((to for model, moved, to in entry.get("moves", []) if (model, moved) == (name, alias)), None)
