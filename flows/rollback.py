"""A registered model and a reason in, production on the version before out."""

from prefect import flow

from flows.environment import prepare_environment
from tasks.artifacts import PromotionDecision
from tasks.errors import InvalidRecipe
from tasks.rollback import rollback
from tasks.steps.state import state


@flow(name="rollback", flow_run_name="{name}")
def roll_back(name: str, reason: str) -> PromotionDecision:
    """Point production back at the version before, once that has shown that it still answers.

    Args:
        name: Registered model.
        reason: Why; the ledger and the version that is left keep it.
    """
    here = state()
    prepare_environment(here)
    if not reason.strip():
        raise InvalidRecipe("reason: found nothing; the ledger keeps why production was rolled back.")
    return rollback(name, reason.strip(), here)
