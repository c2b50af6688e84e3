"""A registered version in, a decision out: by the policy and its newest evaluation, or by force with a reason."""

from pathlib import Path

from prefect import flow

from flows.environment import prepare_environment
from tasks.artifacts import PromotionDecision
from tasks.errors import InvalidRecipe
from tasks.promote import promote_registered
from tasks.promotion import policy as policies
from tasks.recipe.stages import PromotionTarget
from tasks.steps.state import state


@flow(name="promote", flow_run_name="{name} v{version}")
def promote_version(
    name: str,
    version: int,
    target: PromotionTarget = PromotionTarget.production,
    force: bool = False,
    reason: str = "",
    policy: str = "",
) -> PromotionDecision:
    """Let the policy decide on a version, and move its aliases when the answer is yes.

    Args:
        name: Registered model.
        version: Its version, from 1.
        target: How far it goes: candidate, staging or production.
        force: Move the aliases although the policy says no; the version has to answer all the same.
        reason: Why; force needs it, and the ledger keeps it.
        policy: File with the rules, on the machine that promotes; empty means the one that came with
            Tuneline. What the version's own recipe named is not looked at.
    """
    here = state()
    prepare_environment(here)
    if force and not reason.strip():
        raise InvalidRecipe(
            "reason: found nothing; force needs a reason, the ledger keeps why the policy did not count."
        )
    rules_file = Path(policy) if policy else policies.SHIPPED
    return promote_registered(name, version, target, reason.strip() if force else "", rules_file, here)
