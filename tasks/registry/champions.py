"""Which registered version a candidate has to beat."""

from tasks.registry import lookup


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
