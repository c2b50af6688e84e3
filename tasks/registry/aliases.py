"""Move a model's aliases: a version that was proved and a reason in, the version it takes over from out.

`candidate`, `staging` and `production` each name the newest version that got that far, so a promotion to production
moves all three, and one to staging moves candidate too. `previous` is the production before this one, the way back.
Adapter and merged model move together, `production` of the merged model last (`moves.py` says what a crash leaves).

    version            1            2            3 is promoted
    before             previous     production
    after                           previous     candidate, staging, production

What was decided on is looked at again here, under the lock of the moves: no other promotion comes in between.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tasks.errors import UnknownVersion, WorkRefused
from tasks.output.escaping import markdown_text
from tasks.registry import ledger as books
from tasks.registry import lookup
from tasks.registry.client import connect
from tasks.registry.moves import Move, carry_out, finish_half_done, one_at_a_time
from tasks.registry.runs import MlflowRun, service
from tasks.registry.versions import tie

CHAIN = ("candidate", "staging", "production")
ROLLED_BACK = "rolled_back"
REASONS = ("Promoted to ", "Rolled back: ", "Not promoted: ", "Stays in production")
"""How the reason begins that stands above a version's own description."""


class WayBack(NamedTuple):
    """A rollback: the version in production, the one before it, and whether production went back to that already."""

    left: int
    back: int
    done: bool = False


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
    standing: int | None = None,
    decision: Mapping[str, Any] | None = None,
) -> int:
    """Move the aliases up to `target` to a version and its adapter; returns what `previous` points at then, 0 for none.

    `adapter_name` is empty for full fine-tuning. `standing` is the production version that the candidate was proved
    against, 0 where there was none; with None nothing is asked. `decision` is the ledger's entry of why. The reason
    goes into the version's description and the ledger before any alias moves. Doing it again changes nothing. Raises
    UnknownVersion, ServiceUnavailable, StateUnusable, and WorkRefused where production is another version than
    `standing` by now, or for a version that was rolled back, unless forced.
    """
    if target not in CHAIN:
        raise UnknownVersion(f"{target!r} is no stage; use {', '.join(CHAIN)}.")
    with one_at_a_time(ledger), service(tracking_uri):
        finish_half_done(tracking_uri, ledger, run)
        _same_production(tracking_uri, name, version, standing)
        found = _existing(tracking_uri, name, version)
        if (back := found.tags.get(ROLLED_BACK)) and not force:
            raise WorkRefused(f"{name}/{version} was rolled back ({back}); promote it with force to try it again.")
        targets = [(name, version)]
        if adapter_name:
            _existing(tracking_uri, adapter_name, adapter_version)
            tie(tracking_uri, name, version, adapter_name, adapter_version)
            targets.insert(0, (adapter_name, adapter_version))
        if decision:
            books.decide_once(ledger, decision, run)
        if back:
            connect(tracking_uri).delete_model_version_tag(name, str(version), ROLLED_BACK)
        _explain(tracking_uri, found, f"Promoted to {target}: {reason}", decision_tags)
        moves = [move for model, number in targets for move in _promotion(tracking_uri, model, number, target)]
        flow = str(decision["flow"]) if decision else ""
        entry = {"kind": "promote", "name": name, "version": version, "flow": flow, "reason": reason}
        carry_out(tracking_uri, entry, moves, ledger, run)
    return lookup.aliases(tracking_uri, name).get("previous", 0)


def _same_production(tracking_uri: str, name: str, version: int, standing: int | None) -> None:
    now = lookup.aliases(tracking_uri, name).get("production", 0)
    if standing is not None and now not in (standing, version):
        there, then = (f"{name}/{number}" if number else "empty" for number in (now, standing))
        raise WorkRefused(
            f"promote: production is {there} now, and it was {then} when {name}/{version} was proved; nothing was "
            f"moved. Run the flow again, or `tuneline evaluate RECIPE --version {version}` and then `tuneline promote "
            f"{name} {version}`: only the comparison is repeated."
        )


def refuse(
    tracking_uri: str,
    name: str,
    version: int,
    reason: str,
    decision_tags: Mapping[str, str],
    ledger: Path,
    run: MlflowRun | None = None,
    decision: Mapping[str, Any] | None = None,
) -> None:
    """Keep on the version why it was not promoted; no alias that serves moves, `candidate` names what was tried."""
    with one_at_a_time(ledger), service(tracking_uri):
        finish_half_done(tracking_uri, ledger, run)
        found = _existing(tracking_uri, name, version)
        if decision:
            books.decide_once(ledger, decision, run)
        stays = lookup.aliases(tracking_uri, name).get("production") == version
        outcome = "Stays in production, and would not be promoted now" if stays else "Not promoted"
        _explain(tracking_uri, found, f"{outcome}: {reason}", decision_tags)
        connect(tracking_uri).set_registered_model_alias(name, "candidate", str(version))


def rolled_back(tracking_uri: str, name: str, weights: str) -> dict[int, str]:
    """The versions of these trained weights that were rolled back, and why."""
    if not weights:
        return {}
    with service(tracking_uri):
        found = connect(tracking_uri).search_model_versions(f"name = '{name}' and tags.weights = '{weights}'")
    return {int(each.version): each.tags[ROLLED_BACK] for each in found if ROLLED_BACK in each.tags}


def way_back(tracking_uri: str, name: str, ledger: Path, run: MlflowRun | None = None, flow_run: str = "") -> WayBack:
    """Which version a rollback leaves and which one it goes back to; half-done moves are finished first.

    It is `done` where that was a half-done rollback of this model, or where `flow_run` (the id of the run that asks)
    has rolled back before: a repeated step must not go back one version more. Raises UnknownVersion where there is no
    production, WorkRefused where there is no previous.
    """
    with one_at_a_time(ledger), service(tracking_uri):
        finished = [entry["n"] for entry in finish_half_done(tracking_uri, ledger, run)]
        entries = books.entries(ledger)
        given_up = {entry["of"]: entry["reason"] for entry in entries if entry["kind"] == "abandoned"}
        for entry in entries:
            if (entry["kind"], entry.get("name")) != ("rollback", name) or not books.is_of(entry, tracking_uri):
                continue
            if entry["n"] in finished or (flow_run and entry.get("flow_run") == flow_run):
                if entry["n"] in given_up:
                    raise WorkRefused(f"rollback of {name}/{entry['from']} was given up: {given_up[entry['n']]}.")
                return WayBack(entry["from"], entry["version"], done=True)
        now = lookup.aliases(tracking_uri, name)
    if "production" not in now:
        raise UnknownVersion(f"{name}: nothing is in production; `tuneline lookup {name}` shows what there is.")
    left, back = now["production"], now.get("previous", 0)
    if not back or back == left:
        raise WorkRefused(
            f"{name}/{left} is in production and no version is `previous`: there is nothing to go back to."
        )
    return WayBack(left, back)


def rollback(
    tracking_uri: str,
    name: str,
    left: int,
    back: int,
    reason: str,
    ledger: Path,
    run: MlflowRun | None = None,
    flow_run: str = "",
) -> None:
    """Point `production` from `left` back at `back`, adapter too: the pair that `way_back` gave and that was asked.

    The version that is left gets the tag `rolled_back`. `previous` then names the production before that one, where the
    ledger knows it, and is taken away otherwise. `candidate` and `staging` stay: they say what was tried. Raises
    WorkRefused where `production` or `previous` point elsewhere by now.
    """
    with one_at_a_time(ledger), service(tracking_uri):
        finish_half_done(tracking_uri, ledger, run)
        now = lookup.aliases(tracking_uri, name)
        if (now.get("production", 0), now.get("previous", 0)) != (left, back):
            raise WorkRefused(
                f"rollback: production of {name} is {now.get('production', 'empty')} now and previous is "
                f"{now.get('previous', 'empty')}; when this rollback began they were {left} and {back}. Nothing was "
                f"moved. `tuneline lookup {name}` shows what is there; start again if it still has to go back."
            )
        found = _existing(tracking_uri, name, left)
        _explain(tracking_uri, found, f"Rolled back: {reason}", {ROLLED_BACK: reason[:200] or "yes"})
        before = _before(tracking_uri, ledger, name, back)
        moves = [*_return(tracking_uri, name, back, before), (name, "previous", before), (name, "production", back)]
        entry = {"kind": "rollback", "name": name, "version": back, "from": left, "reason": reason}
        carry_out(tracking_uri, entry | ({"flow_run": flow_run} if flow_run else {}), moves, ledger, run)


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
    if own.startswith(REASONS):
        own = own.partition("\n\n")[2]
    client = connect(tracking_uri)
    client.update_model_version(found.name, str(found.version), description=f"{markdown_text(text)}\n\n{own}".strip())
    for key, value in tags.items():
        client.set_model_version_tag(found.name, str(found.version), key, value)
