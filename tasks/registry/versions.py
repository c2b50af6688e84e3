"""Model folders in, versions of a registered model out: each content once, each read and asked without this project."""

import hashlib
import logging
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.errors import ServiceUnavailable, StateUnusable, UnknownVersion, WorkRefused
from tasks.files.digests import DESCRIBING, WEIGHTS, model_digest
from tasks.files.durable import sync_tree, write_text
from tasks.files.hub import snapshot
from tasks.files.locks import DAY, locked
from tasks.registry import contents, lookup
from tasks.registry.client import connect
from tasks.registry.packaging import DIGEST_TAG, Kind, Package, local_folder, log_model
from tasks.registry.runs import MlflowRun, service
from tasks.steps.scratch import scratch_folder
from tasks.steps.state import state
from tasks.steps.store import writable

log = logging.getLogger("tuneline")


def register_model(
    run: MlflowRun,
    name: str,
    kind: Kind,
    folder: Path,
    content_digest: str,
    tags: Mapping[str, str],
    description: str = "",
    model_config: Mapping[str, Any] | None = None,
    max_tokens: int = 256,
    temperature: float = 0.0,
    extra_files: Mapping[str, Path] | None = None,
) -> int:
    """The version of `name` with this content: the one that is there, or a new one that holds a copy of `folder`.

    `model_config` is for `serve_model.py`: {"system": …}, and for an adapter what `base_config` gives. `extra_files`
    lie beside the weights, by a name of one's own. The version that is there stays as it is: settings that shall make
    a new one belong into `content_digest`. Raises StateUnusable where there is no room for the copies, where the folder
    does not hold what its tag says, or the copy not what the folder holds; ServiceUnavailable where the registry gives
    no answer.
    """
    # One at a time in this state, so that a copy that is not whole was left by a process that is gone.
    lock = state().locks / f"register-{content_digest[:32]}.lock"
    with service(run.tracking_uri), writable(lock.parent), locked(lock, DAY, "registering this content"):
        client = connect(run.tracking_uri)
        if found := _known(client, name, content_digest):
            return min(found)
        marks = {"kind": kind, **tags, **_held(kind, folder, tags), DIGEST_TAG: content_digest}
        artifacts = {"adapter" if kind == "adapter" else "model": folder, **(extra_files or {})}
        package = Package(name, kind, marks, artifacts, model_config or {}, max_tokens, temperature)
        model_id, marks[contents.PACKAGE_TAG] = _copied(client, run, package)
        return _create_version(client, run, name, model_id, marks, description)


def _copied(client: Any, run: MlflowRun, package: Package) -> tuple[str, str]:
    """The id of a logged model that holds what was given, and its package digest; a spoilt one from before is let go.

    Raises StateUnusable where a copy that was just made is not whole.
    """
    while True:
        logged = log_model(client, run, package)
        try:
            location = client.get_logged_model(logged.id).artifact_location
            return logged.id, contents.landed(run.tracking_uri, location, package)
        except StateUnusable as fault:
            # Otherwise the next look would find this copy again.
            client.delete_logged_model(logged.id)
            if not logged.found:
                raise
            log.warning("the copy is made again. %s", fault)


def _held(kind: Kind, folder: Path, tags: Mapping[str, str]) -> dict[str, str]:
    """The tag with the digest of the folder that is copied; raises StateUnusable where it is not the one given."""
    tag, held = contents.model_tag(kind), model_digest(folder)
    if (wanted := tags.get(tag, held)) != held:
        raise StateUnusable(
            f"{folder}: its files changed since they were made: their digest is {held}, expected was {wanted}. Nothing "
            "was registered; run again: the step is made again."
        )
    return {tag: held}


def register_base(run: MlflowRun, name: str, folder: Path, content_digest: str) -> int:
    """The version of `base_name(name)` with this content: where adapters find a base that is on no hub."""
    description = f"Base model {name}: the frozen weights that adapters of this registry are bound to."
    return register_model(run, base_name(name), "base", folder, content_digest, {"model": content_digest}, description)


def base_name(name: str) -> str:
    """The registered name of a base model.

    >>> base_name("/models/Qwen3 0.6B")
    'base-qwen3-0.6b'
    """
    slug = re.sub(r"[^a-z0-9._-]+", "-", Path(name).name.lower()).strip("-.")
    return f"base-{slug or 'model'}"


def base_config(base_model: str, folder: Path, quantisation: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The part of an adapter's `model_config` that ties it to its base: where to find it, and its digest.

    `base_model` is `models:/<base_name>/<version>` or `<hub id>@<revision>`; `folder` holds the same files here;
    `quantisation` is how it was held in training, in bitsandbytes' words.
    """
    config = {"base_model": base_model, "base_digest": model_digest(folder)}
    return config | ({"quantisation": dict(quantisation)} if quantisation else {})


def tie(tracking_uri: str, name: str, version: int, adapter_name: str, adapter_version: int) -> None:
    """Name the merged version's adapter and the adapter's merged version in each other's tags."""
    with service(tracking_uri):
        client = connect(tracking_uri)
        client.set_model_version_tag(name, str(version), "adapter", f"{adapter_name}/{adapter_version}")
        client.set_model_version_tag(adapter_name, str(adapter_version), "merged", f"{name}/{version}")


def model_folder(tracking_uri: str, name: str, version: int, cache: Path) -> Path:
    """The folder of a version's weights (an adapter's for an adapter version), to read and not to change.

    Its bytes are those of the version's tags. Raises as `checked_folder` does.
    """
    return contents.weights_in(checked_folder(tracking_uri, name, version, cache))


def checked_folder(tracking_uri: str, name: str, version: int, cache: Path) -> Path:
    """The whole folder of a version whose files are those that were registered, by the digests in its tags.

    What this machine has read before is not read again while it stays as it was. MLflow is imported where the folder is
    not known yet. Raises UnknownVersion, ServiceUnavailable, and WorkRefused for a version with other bytes or without
    a digest.
    """
    found = lookup.find(tracking_uri, name, version=version)
    if found is None:
        raise UnknownVersion(f"{tracking_uri}: {name}/{version} does not exist.")
    address, note = contents.notes_of(cache, name, version, tracking_uri)
    folder = _noted(address)
    if folder is None:
        folder = version_folder(tracking_uri, name, version, cache)
        with writable(address.parent):
            write_text(address, str(folder))
    fault = contents.fault_of(found.tags, folder, note)
    if fault and folder.is_relative_to(cache):
        # A copy of what the registry has, spoilt here: fetched once more.
        shutil.rmtree(folder)
        folder = version_folder(tracking_uri, name, version, cache)
        fault = contents.fault_of(found.tags, folder, note)
    if fault:
        raise WorkRefused(
            f"{name}/{version} ({folder}): {fault}. Restore its files from a copy, or put another version in its place "
            f"(`tuneline rollback {name}`); deleted in MLflow, it is made again by the next run of its recipe."
        )
    return folder


def _noted(address: Path) -> Path | None:
    """The version's folder in a note; a torn note names none: a relative path would lead into the working folder."""
    try:
        text = address.read_text("utf-8")
    except (OSError, ValueError):
        return None
    folder = Path(text)
    whole = folder.is_absolute() and "\0" not in text and (folder / contents.DESCRIPTION).is_file()
    return folder if whole else None


def version_folder(tracking_uri: str, name: str, version: int, cache: Path) -> Path:
    """The whole folder of a version: `MLmodel`, `serve_model.py` and `artifacts/`; in place or from `cache`."""
    from mlflow.artifacts import download_artifacts

    with service(tracking_uri):
        address = connect(tracking_uri).get_model_version_download_uri(name, str(version))
        if address.startswith("models:/m-"):
            address = connect(tracking_uri).get_logged_model(address.removeprefix("models:/")).artifact_location
        if (place := local_folder(address)) is not None:
            return _with_model(place, f"{name}/{version}")
        target = cache / f"{name}-{version}-{hashlib.sha256(f'{tracking_uri} {address}'.encode()).hexdigest()[:12]}"
        if target.exists():
            return target
        lock, partial = target.with_name(f"{target.name}.lock"), target.with_name(f".{target.name}.partial")
        with writable(cache), locked(lock, DAY, "downloading this version"), scratch_folder() as scratch:
            if not target.exists():
                got = Path(download_artifacts(artifact_uri=address, dst_path=str(scratch), tracking_uri=tracking_uri))
                shutil.rmtree(partial, ignore_errors=True)
                # The cache may be a link to another disk, where moving is copying.
                shutil.move(_with_model(got, f"{name}/{version}"), partial)
                sync_tree(partial)
                # Renamed into place last: a folder under its final name is whole.
                partial.rename(target)
        return target


def _with_model(folder: Path, what: str) -> Path:
    if not (folder / "MLmodel").is_file():
        raise UnknownVersion(f"{what}: its files are gone from {folder}; {contents.TO_MEND}.")
    return folder


def _known(client: Any, name: str, digest: str) -> list[int]:
    found = client.search_model_versions(f"name = '{name}' and tags.{DIGEST_TAG} = '{digest}'")
    return [int(each.version) for each in found]


def _create_version(
    client: Any, run: MlflowRun, name: str, model_id: str, marks: Mapping[str, str], description: str
) -> int:
    """One version a content, also when several processes register at once: each removes only its own."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as fault:
        if fault.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    digest = marks[DIGEST_TAG]
    if found := _known(client, name, digest):
        return min(found)
    made = client.create_model_version(
        name, f"models:/{model_id}", run.run_id, tags=dict(marks), description=description or None, model_id=model_id
    )
    first = min(_known(client, name, digest))
    if int(made.version) != first:
        client.delete_model_version(name, str(made.version))
    return first


def base_address(folder: Path) -> str:
    """Where an adapter version's folder says that its base is; empty for a version that has none."""
    import yaml

    described = yaml.safe_load((folder / "MLmodel").read_text("utf-8"))
    return str((described["flavors"]["python_function"].get("config") or {}).get("base_model", ""))


def base_folder(address: str, tracking_uri: str, cache: Path) -> Path:
    """The folder behind the address of an adapter's base: a folder, `models:/name/version`, `<hub id>@<revision>`.

    Read in place or fetched. Raises UnknownVersion, ServiceUnavailable.
    """
    if Path(address).is_dir():
        return Path(address).resolve()
    if address.startswith("models:/"):
        name, _, number = address.removeprefix("models:/").partition("/")
        return model_folder(tracking_uri, name, int(number), cache)
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    name, _, revision = address.partition("@")
    try:
        return snapshot(name, revision, (WEIGHTS, *DESCRIBING))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as fault:
        raise ServiceUnavailable(
            f"{address}: the base of an adapter is not in the local cache, and the hub did not give it: {fault}"
        ) from fault
