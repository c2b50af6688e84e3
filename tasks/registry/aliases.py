"""Move a model's aliases: a version that was proved and a reason in, the version it takes over from out.

`candidate`, `staging` and `production` each name the newest version that got that far, so a promotion to production
moves all three, and one to staging moves candidate too. `previous` is the production before this one, the way back.
Adapter and merged model move together. No registry moves several aliases at once, so the moves are written to the
ledger before and confirmed after: whoever comes next finishes what a crash left half-done. `production` of the merged
model moves last.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from tasks.credentials import without_credentials
from tasks.errors import UnknownVersion, WorkRefused
from tasks.registry import ledger as books
from tasks.registry import lookup
from tasks.registry.tracking import MlflowRun, connect, service
from tasks.registry.versions import tie
from tasks.store import writable

CHAIN = ("candidate", "staging", "production")
ROLLED_BACK = "rolled_back"
Move = tuple[str, str, int]
"""Registered name, alias, and the version it shall point at; 0 takes the alias away."""


def promote(
    tracking_uri: str,
    name: str,
    version: int,
    adapter_name: str,
    adapter_version: int,
    target: str,
    reason: str,
    decision_tags: Mapping[str, str],
    ledger: Path,
    run: MlflowRun | None = None,
    force: bool = False,
) -> int:
    """Move the aliases up to `target` to a version and its adapter; returns what `previous` points at then, 0 for none.

    `adapter_name` is empty for full fine-tuning. The reason goes into the version's description and the ledger before
    any alias moves. Doing it again changes nothing. Raises UnknownVersion, ServiceUnavailable, and WorkRefused for a
    version that was rolled back, unless forced.
    """
    if target not in CHAIN:
        raise UnknownVersion(f"{target!r} is no stage; use {', '.join(CHAIN)}.")
    with _one_at_a_time(ledger), service(tracking_uri):
        _finish_half_done(tracking_uri, ledger, run)
        found = _existing(tracking_uri, name, version)
        if (back := found.tags.get(ROLLED_BACK)) and not force:
            raise WorkRefused(f"{name}/{version} was rolled back ({back}); promote it with force to try it again.")
        targets = [(name, version)]
        if adapter_name:
            _existing(tracking_uri, adapter_name, adapter_version)
            tie(tracking_uri, name, version, adapter_name, adapter_version)
            targets.insert(0, (adapter_name, adapter_version))
        if back:
            connect(tracking_uri).delete_model_version_tag(name, str(version), ROLLED_BACK)
        _explain(tracking_uri, found, f"Promoted to {target}: {reason}", decision_tags)
        moves = [move for model, number in targets for move in _promotion(tracking_uri, model, number, target)]
        _carry_out(
            tracking_uri, {"kind": "promote", "name": name, "version": version, "reason": reason}, moves, ledger, run
        )
    return lookup.aliases(tracking_uri, name).get("previous", 0)


def refuse(tracking_uri: str, name: str, version: int, reason: str, decision_tags: Mapping[str, str]) -> None:
    """Keep on the version why it was not promoted; no alias that serves moves, `candidate` names what was tried."""
    with service(tracking_uri):
        found = _existing(tracking_uri, name, version)
        _explain(tracking_uri, found, f"Not promoted: {reason}", decision_tags)
        connect(tracking_uri).set_registered_model_alias(name, "candidate", str(version))


def rollback(tracking_uri: str, name: str, reason: str, ledger: Path, run: MlflowRun | None = None) -> tuple[int, int]:
    """Point `production` at `previous` again, adapter too; returns (from, to).

    The version that is left gets the tag `rolled_back`. `previous` then names the production before that one, where the
    ledger knows it, and is taken away otherwise. `candidate` and `staging` stay: they say what was tried. Raises
    UnknownVersion where there is no production, WorkRefused where there is no previous.
    """
    with _one_at_a_time(ledger), service(tracking_uri):
        for entry in _finish_half_done(tracking_uri, ledger, run):
            # The call that a crash ended, repeated: going back once more would be one version too far.
            if (entry["kind"], entry["name"]) == ("rollback", name):
                return entry["from"], entry["version"]
        now = lookup.aliases(tracking_uri, name)
        if "production" not in now:
            raise UnknownVersion(f"{name}: nothing is in production; `tuneline lookup {name}` shows what there is.")
        left, back = now["production"], now.get("previous", 0)
        if not back or back == left:
            raise WorkRefused(
                f"{name}/{left} is in production and no version is `previous`: there is nothing to go back to."
            )
        found = _existing(tracking_uri, name, left)
        _explain(tracking_uri, found, f"Rolled back: {reason}", {ROLLED_BACK: reason[:200] or "yes"})
        before = _before(tracking_uri, ledger, name, back)
        moves = [*_return(tracking_uri, name, back, before), (name, "previous", before), (name, "production", back)]
        entry = {"kind": "rollback", "name": name, "version": back, "from": left, "reason": reason}
        _carry_out(tracking_uri, entry, moves, ledger, run)
    return left, back


def _promotion(tracking_uri: str, name: str, version: int, target: str) -> Iterator[Move]:
    """`previous` first and the target last: a reader never finds production moved without a way back."""
    now = lookup.aliases(tracking_uri, name)
    if target == "production" and now.get("production", version) != version:
        yield name, "previous", now["production"]
    for alias in CHAIN[: CHAIN.index(target) + 1]:
        if now.get(alias) != version:
            yield name, alias, version


def _return(tracking_uri: str, name: str, back: int, before: int) -> Iterator[Move]:
    """The adapter's moves: to the adapters that the merged versions are tied to."""
    adapter = _adapter(tracking_uri, name, back)
    if adapter:
        earlier = _adapter(tracking_uri, name, before) if before else None
        yield adapter[0], "previous", earlier[1] if earlier else 0
        yield adapter[0], "production", adapter[1]


def _adapter(tracking_uri: str, name: str, version: int) -> tuple[str, int] | None:
    found = lookup.find(tracking_uri, name, version=version)
    model, _, number = (found.tags.get("adapter", "") if found else "").rpartition("/")
    return (model, int(number)) if model else None


def _before(tracking_uri: str, ledger: Path, name: str, version: int) -> int:
    """What was `previous` when this version became production; 0 where that is unknown, gone or was rolled back."""
    for entry in reversed(books.entries(ledger)):
        moves = [tuple(move) for move in entry.get("moves", [])]
        if entry["kind"] == "promote" and (name, "production", version) in moves:
            number = next((to for model, alias, to in moves if (model, alias) == (name, "previous")), 0)
            found = lookup.find(tracking_uri, name, version=number) if number else None
            return number if found and ROLLED_BACK not in found.tags else 0
    return 0


def _existing(tracking_uri: str, name: str, version: int) -> lookup.Version:
    found = lookup.find(tracking_uri, name, version=version) if version else None
    if found is None:
        raise UnknownVersion(
            f"{tracking_uri}: {name}/{version} does not exist; `tuneline lookup {name}` shows what does."
        )
    return found


def _explain(tracking_uri: str, found: lookup.Version, text: str, tags: Mapping[str, str]) -> None:
    """Put the reason above the version's own description, in the place of an earlier reason."""
    own = found.description
    if own.startswith(("Promoted to ", "Rolled back: ", "Not promoted: ")):
        own = own.partition("\n\n")[2]
    client = connect(tracking_uri)
    client.update_model_version(
        found.name, str(found.version), description=f"{' '.join(text.split())}\n\n{own}".strip()
    )
    for key, value in tags.items():
        client.set_model_version_tag(found.name, str(found.version), key, value)


def _carry_out(
    tracking_uri: str, entry: Mapping[str, Any], moves: list[Move], ledger: Path, run: MlflowRun | None
) -> None:
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


def _finish_half_done(tracking_uri: str, ledger: Path, run: MlflowRun | None) -> list[dict[str, Any]]:
    """Finish moves that were announced and not confirmed, unless someone has moved these aliases elsewhere since."""
    finished = []
    found = books.entries(ledger)
    closed = {entry["of"] for entry in found if entry["kind"] in ("done", "abandoned")}
    for entry in found:
        if "moves" not in entry or entry["n"] in closed:
            continue
        if without_credentials(entry["registry"]) != without_credentials(tracking_uri):
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
def _one_at_a_time(ledger: Path) -> Iterator[None]:
    with writable(ledger.parent), FileLock(ledger.with_name(f"{ledger.name}.lock")):
        yield
