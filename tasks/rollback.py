"""A registered model and a reason in, production on the version before it out, proved to answer first."""

from tasks.artifacts import PolicyCheck, PromotionDecision
from tasks.orchestration import flow_run_id, show, step
from tasks.output.credentials import without_credentials
from tasks.promotion.decision import loads_and_answers, markdown, standing_aliases
from tasks.promotion.evidence import evidence_for
from tasks.recipe.stages import PromotionTarget
from tasks.steps.state import State
from tasks.steps.store import digest


@step(retries=3, retry_delay_seconds=[5, 30, 60])
def rollback(name: str, reason: str, state: State) -> PromotionDecision:
    """Ask the version that is `previous`, then point production at it again; the ledger keeps both and why.

    Which version that is, is read once: where production moves while it is asked, nothing is rolled back.
    """
    from tasks.registry import aliases

    uri, run_id = state.tracking_uri, flow_run_id()
    way = aliases.way_back(uri, name, state.ledger, flow_run=run_id)
    known = evidence_for(name, way.back, state)
    proof = loads_and_answers(known.versions, known.questions, state)
    if not way.done:
        aliases.rollback(uri, name, way.left, way.back, reason, state.ledger, known.run, run_id)
    standing = standing_aliases(name, known.versions.adapter_name, state)
    back = PolicyCheck(rule="rollback", passed=True, reason=f"Back from version {way.left}: {reason}")
    decision = PromotionDecision(
        digest=digest(["rollback", without_credentials(uri), name, way.left, way.back, reason]),
        name=name,
        version=way.back,
        adapter_version=known.versions.adapter_version,
        promote=True,
        target=PromotionTarget.production.value,
        checks=[back, proof],
        previous=standing[name].get("previous", 0),
        aliases=standing,
    )
    show(f"{name}-decision", markdown(decision), "Rolled back, and why.")
    return decision
