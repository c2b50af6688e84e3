"""A version's files against the digests in its tags: all bytes at first, and on this machine what changed since."""

from collections.abc import Mapping
from pathlib import Path

from tasks.errors import InvalidBaseModel, StateUnusable, UnknownVersion
from tasks.files.digests import digest, digest_of_files, holds, model_digest, model_files
from tasks.files.durable import sync_tree
from tasks.files.known_digests import file_digest, known_digest, remembered
from tasks.registry.packaging import DIGEST_TAG, SERVE_MODEL, Package, local_folder
from tasks.steps.scratch import scratch_folder

PACKAGE_TAG = "package"
"""Digest of the files that are run or read beside the weights."""
DESCRIPTION, CODE = "MLmodel", "serve_model.py"
TO_MEND = "restore them from a copy, or delete the version in MLflow: the next run of its recipe then makes it again"
"""While the version is there, a run finds it by its tag and registers nothing."""


def model_tag(kind: str) -> str:
    """The tag that holds the digest of a version's own model folder; an adapter's `model` is what it was merged to."""
    return "weights" if kind == "adapter" else "model"


def wanted_digest(tags: Mapping[str, str]) -> str:
    """The digest that a version's model folder has to hold; empty for a version that carries none."""
    kind = tags.get("kind", "")
    wanted = tags.get(model_tag(kind), "")
    # Bases that were registered before they had a tag `model`.
    return wanted or (tags.get(DIGEST_TAG, "") if kind == "base" else "")


def package_digest(folder: Path) -> str:
    """Digest of a version's description, its code and the files that lie beside the weights."""
    beside = {f"artifacts/{path.name}": path for path in (folder / "artifacts").glob("*") if path.is_file()}
    files = {DESCRIPTION: folder / DESCRIPTION, CODE: folder / CODE, **beside}
    return digest_of_files({name: known_digest(path) for name, path in files.items()})


def fault_of(tags: Mapping[str, str], folder: Path, note: Path) -> str:
    """What is wrong with the files of a version; empty where they are those that were registered.

    `note` is where this machine keeps what it has read of them.
    """
    wanted, package = wanted_digest(tags), tags.get(PACKAGE_TAG, "")
    if not wanted:
        return (
            "it carries no digest of its files (tags 'model', 'weights'), so nothing shows that they are what was "
            "registered; another program registered it"
        )
    with remembered(note, folder):
        try:
            # First: it vouches for the description, which says where the weights lie.
            if package and package != package_digest(folder):
                return f"{DESCRIPTION}, {CODE} or a file beside the model is not what was registered"
            weights = weights_in(folder)
            if not holds(weights, wanted):
                return f"its model holds other bytes than were registered: {model_digest(weights)}, tagged {wanted}"
        except (InvalidBaseModel, UnknownVersion, OSError) as fault:
            return str(fault)
    return ""


def weights_in(folder: Path) -> Path:
    """The weights inside a version's folder, as its `MLmodel` names them.

    Raises UnknownVersion where it names none, or a place or a link that leads out of the version's folder.
    """
    import yaml

    try:
        described = yaml.safe_load((folder / DESCRIPTION).read_text("utf-8"))
        artifacts = described["flavors"]["python_function"].get("artifacts", {})
        weights = folder / str((artifacts.get("adapter") or artifacts["model"])["path"])
    except (ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as fault:
        raise UnknownVersion(
            f"{folder}: this version was not registered here, or its {DESCRIPTION} was changed: it names neither a "
            "model nor an adapter."
        ) from fault
    root = folder.resolve()
    for path in (weights, *folder.rglob("*")):
        if not path.resolve().is_relative_to(root):
            raise UnknownVersion(
                f"{folder}: this version is not whole: {path} leads to {path.resolve()}, outside of it; put the files "
                f"there, {TO_MEND}."
            )
    return weights


def landed(tracking_uri: str, location: str, package: Package) -> str:
    """The package digest of a copy that was just made; raises StateUnusable where it is not what was copied.

    In a local artifact store every byte of the copy is read. From another one only the small files come back here; the
    weights are compared when they are next fetched.
    """
    folder = local_folder(location)
    sources = {f"artifacts/{path.resolve().name}": path for path in package.artifacts.values() if path.is_file()}
    sources[CODE] = SERVE_MODEL
    try:
        if folder:
            # The database will say that the version exists: its files have to survive a crash of the machine first.
            sync_tree(folder)
        unequal = _unequal_models(package, folder) if folder else ""
        with scratch_folder() as scratch:
            copies = {
                name: folder / name if folder else _fetched(tracking_uri, f"{location}/{name}", scratch)
                for name in (DESCRIPTION, *sources)
            }
            digests = {name: file_digest(path) for name, path in copies.items()}
    except (UnknownVersion, OSError) as fault:
        raise StateUnusable(f"{location}: the copy that was made there is not whole ({fault}); run again.") from fault
    unequal = unequal or next((name for name, path in sources.items() if digests[name] != file_digest(path)), "")
    if unequal:
        raise StateUnusable(f"{location}: {unequal} landed there with other bytes than were copied; run again.")
    return digest_of_files(digests)


def _fetched(tracking_uri: str, address: str, folder: Path) -> Path:
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(artifact_uri=address, dst_path=str(folder), tracking_uri=tracking_uri))


def _unequal_models(package: Package, folder: Path) -> str:
    """The first file of a model folder that its copy holds with other bytes, or that only one of them has."""
    source = next(path for path in package.artifacts.values() if path.is_dir())
    wanted, copied = model_files(source), model_files(weights_in(folder))
    both = wanted.keys() & copied.keys()
    names = sorted(wanted.keys() | copied.keys())
    unequal = (name for name in names if name not in both or file_digest(copied[name]) != known_digest(wanted[name]))
    return next(unequal, "")


def notes_of(cache: Path, name: str, version: int, tracking_uri: str) -> tuple[Path, Path]:
    """Two notes on a version: where its folder lies, and what this machine has read of its files."""
    named = f"{name}-{version}-{digest(tracking_uri)[:12]}"
    return cache / "places" / named, cache / "verified" / f"{named}.json"
