"""Several aliases moved as one: announced in the ledger before, confirmed after, finished by whoever comes next.

No registry moves several aliases at once, so a crash may leave moves half-done. Everything here needs the lock that
`one_at_a_time` holds.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tasks.files.locks import locked
from tasks.output.credentials import without_credentials
from tasks.registry import ledger as books
from tasks.registry import lookup
from tasks.registry.client import connect
from tasks.registry.runs import MlflowRun
from tasks.steps.store import writable

Move = tuple[str, str, int]
"""Registered name, alias, and the version it shall point at; 0 takes the alias away."""
MOVES_SECONDS = 300.0
"""How long a lock may be waited for: the moves of one promotion on a server that is slow and still answers."""


def carry_out(
    tracking_uri: str, entry: Mapping[str, Any], moves: list[Move], ledger: Path, run: MlflowRun | None
) -> None:
    """Announce moves in the ledger, make them, confirm them; without moves nothing is written."""
    if not moves:
        return
    here = {model: lookup.aliases(tracking_uri, model) for model, _, _ in moves}
    before = [here[model].get(alias, 0) for model, alias, _ in moves]
    intent = {**entry, "registry": without_credentials(tracking_uri), "moves": moves, "before": before}
    number = books.append(ledger, intent, run)
    _move(tracking_uri, moves)
    books.append(ledger, {"kind": "done", "of": number}, run)


def _move(tracking_uri: str, moves: list[Move]) -> None:
    client = connect(tracking_uri)
    for model, alias, version in moves:
        if version:
            client.set_registered_model_alias(model, alias, str(version))
        else:
            client.delete_registered_model_alias(model, alias)


def finish_half_done(tracking_uri: str, ledger: Path, run: MlflowRun | None) -> list[dict[str, Any]]:
    """Finish moves that were announced and not confirmed, unless someone has moved these aliases elsewhere since."""
    finished = []
    found = books.entries(ledger)
    closed = {entry["of"] for entry in found if entry["kind"] in ("done", "abandoned")}
    for entry in found:
        if "moves" not in entry or entry["n"] in closed or not books.is_of(entry, tracking_uri):
            continue
        moves: list[Move] = [(model, alias, version) for model, alias, version in entry["moves"]]
        fault = _outdated(tracking_uri, moves, entry["before"])
        if not fault:
            _move(tracking_uri, moves)
            finished.append(entry)
        close = (
            {"kind": "abandoned", "of": entry["n"], "reason": fault} if fault else {"kind": "done", "of": entry["n"]}
        )
        books.append(ledger, close, run)
    return finished


def _outdated(tracking_uri: str, moves: list[Move], before: list[int]) -> str:
    """Why these moves may not be finished any more; empty when they may."""
    for (model, alias, to), was in zip(moves, before, strict=True):
        now = lookup.aliases(tracking_uri, model).get(alias, 0)
        if now not in (was, to):
            return f"{model}@{alias} was moved to {now} by someone else"
        if to and lookup.find(tracking_uri, model, version=to) is None:
            return f"{model}/{to} is gone"
    return ""


@contextmanager
def one_at_a_time(ledger: Path) -> Iterator[None]:
    """Hold the lock of the aliases on this machine; raises StateUnusable where another process keeps it."""
    with writable(ledger.parent), locked(ledger.with_name(f"{ledger.name}.lock"), MOVES_SECONDS, "moving aliases"):
        yield
