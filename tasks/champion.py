"""A registered name in, a version of it out: the one that is asked for, or the one to beat."""

from dataclasses import dataclass
from pathlib import Path

from tasks.errors import UnknownVersion
from tasks.modeling.base_model import resolve
from tasks.modeling.origin import is_adapter, origin_of
from tasks.recipe import BaseModelRecipe
from tasks.registry import lookup
from tasks.registry.contents import wanted_digest
from tasks.workplace import Workplace


@dataclass(frozen=True)
class RegisteredModel:
    """A registered version: where its model lies, and the digests of model, the weights behind it and its base.

    `base_folder` is set for an adapter that could not be merged.
    """

    name: str
    version: int
    folder: Path
    digest: str
    weights: str
    base: str
    base_folder: Path | None = None

    @property
    def label(self) -> str:
        """Registry name and version."""
        return f"{self.name}/{self.version}"


def version_of(name: str, version: int, place: Workplace, trust_remote_code: bool = False) -> RegisteredModel:
    """The version with this number, or the one in production for 0; raises as `existing` does."""
    return _model(existing(name, version, place.state.tracking_uri), place, trust_remote_code)


def existing(name: str, version: int, uri: str) -> lookup.Version:
    """What the registry says of a version, 0 for production's. Raises UnknownVersion with what there is."""
    found = lookup.find(uri, name, version=version)
    if found is None:
        wanted = f"{name}/{version}" if version else f"{name}@production"
        raise UnknownVersion(f"{uri}: {wanted} does not exist; {lookup.said_aliases(uri, name)}.")
    return found


def champion_of(
    name: str, candidate_weights: str, place: Workplace, trust_remote_code: bool = False
) -> RegisteredModel | None:
    """The version to beat, with its model folder."""
    uri = place.state.tracking_uri
    found = to_beat(lookup.find(uri, name, "production"), candidate_weights, uri)
    return _model(found, place, trust_remote_code) if found else None


def to_beat(production: lookup.Version | None, candidate_weights: str, uri: str) -> lookup.Version | None:
    """The version that the candidate has to be compared with: production, or None where there is none.

    Where production has the candidate's weights, it is the version those were compared with when they got there: no
    model is compared with itself, a run on unchanged data asks the same question again, and a version that differs in
    `serving` alone is decided on as the one that serves now was. The digest of the weights covers what they are bound
    to: with another base, template or system message they are other weights.
    """
    seen: set[int] = set()
    found = production
    while found and same_weights(found, candidate_weights):
        name, _, number = found.tags.get("champion", "").rpartition("/")
        seen.add(found.version)
        known = name == found.name and number.isdecimal() and int(number) not in seen
        found = lookup.find(uri, name, version=int(number)) if known else None
    return found


def same_weights(version: lookup.Version, weights: str) -> bool:
    """Whether a version was made of these trained weights."""
    return bool(weights) and version.tags.get("weights") == weights


def label(version: lookup.Version | None) -> str:
    """Registry name and version; empty for none."""
    return f"{version.name}/{version.version}" if version else ""


def _model(found: lookup.Version, place: Workplace, trust_remote_code: bool) -> RegisteredModel:
    folder = folder_of(found.name, found.version, place)
    weights, base_digest = (found.tags.get(tag, "") for tag in ("weights", "base"))
    base = _base_of(folder, found, place, trust_remote_code) if is_adapter(folder) else None
    model = wanted_digest(found.tags)
    return RegisteredModel(found.name, found.version, folder, model, weights, base_digest, base)


def _base_of(folder: Path, found: lookup.Version, place: Workplace, trust_remote_code: bool) -> Path:
    """Where the base of an adapter lies: in the registry, or on the hub by the revision it was trained on."""
    from tasks.registry import versions

    uri, cache = place.state.tracking_uri, place.state.root / "cache"
    address = versions.base_address(versions.checked_folder(uri, found.name, found.version, cache))
    if address.startswith("models:/"):
        return versions.base_folder(address, uri, cache)
    origin = origin_of(folder)
    base = BaseModelRecipe(
        model=origin["base_name"], revision=origin["base_revision"], trust_remote_code=trust_remote_code
    )
    return resolve(base, place.state.bases).folder


def folder_of(name: str, version: int, place: Workplace) -> Path:
    """A version's model folder, with the bytes that were registered."""
    from tasks.registry import versions

    return versions.model_folder(place.state.tracking_uri, name, version, place.state.root / "cache")
