"""A registered model and a reason in, production on the version before it out, proved to answer first."""

from tasks.artifacts import PolicyCheck, PromotionDecision
from tasks.credentials import without_credentials
from tasks.evidence import evidence_for
from tasks.pages import show
from tasks.promote import markdown
from tasks.recipe import PromotionTarget
from tasks.registry import lookup
from tasks.retries import verb
from tasks.settings import State
from tasks.settling import asked
from tasks.store import digest


@verb(retries=3, retry_delay_seconds=[5, 30, 60])
def rollback(name: str, reason: str, state: State) -> PromotionDecision:
    """Ask the version that is `previous`, then point production at it again; the ledger keeps both and why."""
    from tasks.registry import aliases

    uri = state.tracking_uri
    back = lookup.aliases(uri, name).get("previous", 0)
    known = evidence_for(name, back, state) if back else None
    proof = [asked(known.versions, known.questions, state)] if known else []
    left, version = aliases.rollback(uri, name, reason, state.ledger, known.run if known else None)
    adapter = lookup.find(uri, name, version=version)
    checks = [PolicyCheck(rule="rollback", passed=True, reason=f"Back from version {left}: {reason}"), *proof]
    decision = PromotionDecision(
        digest=digest(["rollback", without_credentials(uri), name, left, version, reason]),
        name=name,
        version=version,
        adapter_version=int((adapter.tags.get("adapter", "") if adapter else "").rpartition("/")[2] or 0),
        promote=True,
        target=PromotionTarget.production.value,
        checks=checks,
        previous=lookup.aliases(uri, name).get("previous", 0),
    )
    show(f"{name}-decision", markdown(decision), "Rolled back, and why.")
    return decision
