"""A registered name in, the version to beat out."""

from dataclasses import dataclass
from pathlib import Path

from tasks.registry import lookup
from tasks.workplace import Workplace


@dataclass(frozen=True)
class Champion:
    """The version in production: where its model lies, and the digests of the model and of the weights behind it."""

    name: str
    version: int
    folder: Path
    digest: str
    weights: str

    @property
    def label(self) -> str:
        """Registry name and version."""
        return f"{self.name}/{self.version}"


def champion_of(name: str, candidate_weights: str, place: Workplace) -> Champion | None:
    """The production version; where that is the candidate itself, the one it was compared with when it got there.

    So a run on unchanged data asks the same question again and finds its answer, instead of comparing a model with itself.
    """
    uri = place.state.tracking_uri
    found = lookup.find(uri, name, "production")
    if found and found.tags.get("weights") == candidate_weights:
        before = found.tags.get("champion", "")
        found = lookup.find(uri, name, version=int(before.rpartition("/")[2])) if before else None
    if found is None:
        return None
    folder = folder_of(name, found.version, place)
    return Champion(name, found.version, folder, found.tags.get("model", ""), found.tags.get("weights", ""))


def folder_of(name: str, version: int, place: Workplace) -> Path:
    """A version's model folder, found by its note or through the registry, which takes seconds to import."""
    note = place.state.root / "cache" / "places" / f"{name}-{version}"
    if note.is_file() and (known := Path(note.read_text("utf-8"))).joinpath("config.json").is_file():
        return known
    from tasks.registry import versions

    folder = versions.model_folder(place.state.tracking_uri, name, version, place.state.root / "cache")
    note.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(str(folder), "utf-8")
    return folder
