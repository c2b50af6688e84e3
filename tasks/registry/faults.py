"""What MLflow raises in, this project's errors out."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tasks.errors import PermanentError, RunGone, ServiceUnavailable, StateUnusable, UnknownVersion

GAVE_UP = {
    "INTERNAL_ERROR",
    "TEMPORARILY_UNAVAILABLE",
    "REQUEST_LIMIT_EXCEEDED",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
}
RUN_GONE = re.compile(r"The run \w+ must be in the 'active' state|Run with id=\w+ not found")
WRITTEN_TWICE = re.compile(r"UNIQUE constraint failed|duplicate key value")
"""What SQLite and PostgreSQL say to the second of two processes that store the same row."""
REFUSED = {"PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED"}


@contextmanager
def service(tracking_uri: str) -> Iterator[None]:
    """Turn what MLflow raises into this project's errors: no answer is transient, a refusal is not."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import OperationalError

    try:
        yield
    except MlflowException as fault:
        text = f"{tracking_uri}: MLflow: {str(fault)[:500]}"
        if "disk is full" in text or "readonly database" in text:
            raise StateUnusable(f"{text} Free space, or make the file writable.") from fault
        if RUN_GONE.search(text):
            raise RunGone(f"{text} Somebody deleted it meanwhile; the next try makes it again.") from fault
        if WRITTEN_TWICE.search(text):
            raise ServiceUnavailable(f"{text} Another process wrote the same at this moment.") from fault
        if fault.error_code in GAVE_UP:
            raise ServiceUnavailable(text) from fault
        if fault.error_code == "RESOURCE_DOES_NOT_EXIST":
            raise UnknownVersion(text) from fault
        if fault.error_code in REFUSED:
            raise PermanentError(f"{text} Check the rights of MLFLOW_TRACKING_USERNAME.") from fault
        raise PermanentError(text) from fault
    except (RequestException, OperationalError) as fault:
        raise ServiceUnavailable(f"{tracking_uri}: MLflow gave no answer: {str(fault)[:500]}") from fault
