"""Ask a registry which version a name and an alias mean: strings in, a Version out, without importing MLflow.

The library takes two seconds to import; a look-up takes a hundredth. SQLite is read through the standard library, a
server through its REST API (https://mlflow.org/docs/latest/api_reference/rest-api.html); any other store, and a SQLite
schema this module does not know, through the client.
"""

import base64
import json
import os
from http.client import HTTPMessage
from pathlib import Path
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import SplitResult, urlencode, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from pydantic import BaseModel, ConfigDict

from tasks.errors import PermanentError, ServiceUnavailable, UnknownVersion
from tasks.output.credentials import Login, split_login
from tasks.registry.database import UnknownSchemaError, is_server, rows, sqlite_path

SECONDS = 5.0
"""How long a server may take to answer."""

_VERSION = (
    "select run_id, source, description from model_versions "
    "where workspace = 'default' and name = ? and version = ? and current_stage <> 'Deleted_Internal'"
)
_TAGS = "select key, value from model_version_tags where workspace = 'default' and name = ? and version = ?"
_ALIASES = "select alias, version from registered_model_aliases where workspace = 'default' and name = ?"


class Version(BaseModel):
    """One version of a registered model, as the registry describes it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int
    run_id: str
    source: str
    tags: dict[str, str]
    description: str


def find(tracking_uri: str, name: str, alias: str = "production", version: int = 0) -> Version | None:
    """The version that `alias` points at, or the one with this number; None where there is no such thing.

    Raises ServiceUnavailable where a server gives no answer within 5 s, PermanentError where it refuses to.
    """
    if path := sqlite_path(tracking_uri):
        try:
            return _find_in_file(path, name, alias, version)
        except UnknownSchemaError:
            pass
    elif is_server(tracking_uri):
        return _find_on_server(tracking_uri, name, alias, version)
    return _find_with_client(tracking_uri, name, alias, version)


def aliases(tracking_uri: str, name: str) -> dict[str, int]:
    """Every alias of a registered model and the version it points at; empty where there is no such name.

    Raises as `find` does.
    """
    if path := sqlite_path(tracking_uri):
        try:
            return {alias: int(number) for alias, number in rows(path, _ALIASES, name)}
        except UnknownSchemaError:
            pass
    elif is_server(tracking_uri):
        answer = _get(tracking_uri, "registered-models/get", name=name)
        found = answer["registered_model"].get("aliases", []) if answer else []
        return {entry["alias"]: int(entry["version"]) for entry in found}
    return _aliases_with_client(tracking_uri, name)


def get_by_alias(tracking_uri: str, name: str, alias: str) -> Version:
    """The version that an alias points at; raises UnknownVersion with the aliases there are, and as `find` does."""
    if found := find(tracking_uri, name, alias):
        return found
    raise UnknownVersion(f"{name}@{alias}: {tracking_uri} has no such alias; {describe_aliases(tracking_uri, name)}.")


def describe_aliases(tracking_uri: str, name: str) -> str:
    """The aliases of a model in words, for a message that says what there is."""
    known = sorted(aliases(tracking_uri, name).items())
    return f"aliases of {name}: {', '.join(f'{alias} → {version}' for alias, version in known) or 'none'}"


def _find_in_file(path: Path, name: str, alias: str, version: int) -> Version | None:
    number = version or dict(rows(path, _ALIASES, name)).get(alias, 0)
    found = rows(path, _VERSION, name, number)
    if not found:
        return None
    run_id, source, description = (text or "" for text in found[0])
    tags = dict(rows(path, _TAGS, name, number))
    return Version(name=name, version=number, run_id=run_id, source=source, tags=tags, description=description)


def _find_on_server(tracking_uri: str, name: str, alias: str, version: int) -> Version | None:
    if version:
        answer = _get(tracking_uri, "model-versions/get", name=name, version=str(version))
    else:
        answer = _get(tracking_uri, "registered-models/alias", name=name, alias=alias)
    if answer is None:
        return None
    found = answer["model_version"]
    return Version(
        name=name,
        version=int(found["version"]),
        run_id=found.get("run_id", ""),
        source=found.get("source", ""),
        tags={tag["key"]: tag.get("value", "") for tag in found.get("tags", [])},
        description=found.get("description", ""),
    )


def _get(tracking_uri: str, what: str, **query: str) -> dict[str, Any] | None:
    address = f"{tracking_uri.rstrip('/')}/api/2.0/mlflow/{what}?{urlencode(query)}"
    try:
        with build_opener(_SameServer).open(Request(address, headers=_credentials()), timeout=SECONDS) as answer:
            return dict(json.load(answer))
    except HTTPError as fault:
        text = fault.read(2000).decode("utf-8", "replace")
        # A name without this alias is an invalid parameter to MLflow, a missing name or version does not exist.
        if "RESOURCE_DOES_NOT_EXIST" in text or ("INVALID_PARAMETER_VALUE" in text and "alias" in text):
            return None
        if fault.code in (408, 429) or fault.code >= 500:
            raise ServiceUnavailable(f"{tracking_uri}: MLflow answered {fault.code}: {text[:200]}") from fault
        hint = (
            " Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or _TOKEN." if fault.code in (401, 403) else ""
        )
        raise PermanentError(f"{tracking_uri}: MLflow answered {fault.code}: {text[:200]}{hint}") from fault
    except (URLError, OSError, ValueError) as fault:
        reason = getattr(fault, "reason", fault)
        raise ServiceUnavailable(
            f"{tracking_uri}: no MLflow server answered within {SECONDS:.0f} s ({reason}). Is it running?"
        ) from fault


class _SameServer(HTTPRedirectHandler):
    """Follows a redirect on the same server only: credentials go to nobody else, and nobody else's answer counts."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """The request for the new address, or PermanentError where that is another server, or one without TLS."""
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        same_host, ports = before.hostname == after.hostname, (_port(before), _port(after))
        same = after.scheme == before.scheme and ports[0] == ports[1]
        # Another port is another server, whoever started it; only the usual two belong together.
        upgraded = (before.scheme, after.scheme) == ("http", "https") and (ports[0] == ports[1] or ports == (80, 443))
        if same_host and (same or upgraded):
            return super().redirect_request(req, fp, code, msg, headers, newurl)
        raise PermanentError(
            f"{before.scheme}://{before.netloc}: the server redirects to {after.scheme}://{after.netloc}. Credentials "
            "are not sent there; if that is your MLflow server, set MLFLOW_TRACKING_URI to its address."
        )


def _port(address: SplitResult) -> int | None:
    return address.port or {"http": 80, "https": 443}.get(address.scheme)


def _credentials() -> dict[str, str]:
    if login := tracking_login():
        return {"Authorization": "Basic " + base64.b64encode(f"{login.user}:{login.password}".encode()).decode()}
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    return {"Authorization": f"Bearer {token}"} if token else {}


def tracking_login() -> Login | None:
    """User and password for MLflow's server: from MLflow's variables, or from the address in MLFLOW_TRACKING_URI."""
    user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    if user and password:
        return Login(user, password)
    return split_login(os.environ.get("MLFLOW_TRACKING_URI", ""))[1]


def _find_with_client(tracking_uri: str, name: str, alias: str, version: int) -> Version | None:
    from tasks.registry.client import connect
    from tasks.registry.runs import service

    try:
        with service(tracking_uri):
            client = connect(tracking_uri)
            number = version or _aliases_with_client(tracking_uri, name).get(alias, 0)
            found = client.get_model_version(name, str(number)) if number else None
    except UnknownVersion:
        return None
    if found is None:
        return None
    return Version(
        name=name,
        version=int(found.version),
        run_id=found.run_id or "",
        source=found.source or "",
        tags=dict(found.tags),
        description=found.description or "",
    )


def _aliases_with_client(tracking_uri: str, name: str) -> dict[str, int]:
    from tasks.registry.client import connect
    from tasks.registry.runs import service

    try:
        with service(tracking_uri):
            found = connect(tracking_uri).get_registered_model(name).aliases
    except UnknownVersion:
        return {}
    return {alias: int(number) for alias, number in found.items()}


def run_status(tracking_uri: str, run_id: str) -> str:
    """RUNNING, FINISHED, FAILED or KILLED; empty where the store does not have this MLflow run, or it is deleted."""
    if path := sqlite_path(tracking_uri):
        query = "select status from runs where run_uuid = ? and lifecycle_stage = 'active'"
        try:
            return next((str(status) for (status,) in rows(path, query, run_id)), "")
        except UnknownSchemaError:
            pass
    if is_server(tracking_uri):
        answer = _get(tracking_uri, "runs/get", run_id=run_id)
        info = answer["run"]["info"] if answer else {}
        return str(info["status"]) if info.get("lifecycle_stage") == "active" else ""
    from tasks.registry.runs import status_of

    return status_of(tracking_uri, run_id)


def get_version(name: str, version: int, uri: str) -> Version:
    """What the registry says of a version, 0 for production's. Raises UnknownVersion with what there is."""
    found = find(uri, name, version=version)
    if found is None:
        wanted = f"{name}/{version}" if version else f"{name}@production"
        raise UnknownVersion(f"{uri}: {wanted} does not exist; {describe_aliases(uri, name)}.")
    return found
