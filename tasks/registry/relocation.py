"""A registry that was moved with its state folder: what still names the old place, pointed at the new one.

MLflow keeps the absolute address of every file, so a renamed or restored state folder looks as if its files were gone;
and what is written next would go to the old place.
"""

import sqlite3
import time
from contextlib import closing
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tasks.errors import StateUnusable
from tasks.registry.database import ARTIFACTS, UnknownSchemaError, alone, local_folder, rows, sqlite_path

COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
VERSIONS = (
    "select v.name, v.version, m.artifact_location from model_versions v join logged_models m "
    "on v.source = 'models:/' || m.model_id "
    "where v.current_stage <> 'Deleted_Internal' and m.lifecycle_stage = 'active'"
)


class Relocation(BaseModel):
    """What was done to a registry that had been moved."""

    model_config = ConfigDict(frozen=True)

    old: Path
    new: Path
    rows: dict[str, int]
    versions: int
    missing: list[str]
    backup: Path


def check(tracking_uri: str) -> None:
    """Refuse to go on with a registry that was moved. Raises StateUnusable with the way to mend it."""
    if fault := moved(tracking_uri):
        raise StateUnusable(fault)


def moved(tracking_uri: str) -> str:
    """That a registry was moved, in words with the way to mend it; empty where it lies where it was made."""
    database = sqlite_path(tracking_uri)
    locations = old_locations(database) if database else []
    if not database or not locations:
        return ""
    return (
        f"the registry was made in {_folder(locations[0]).parent}; it is now in {database.absolute().parent}, and "
        "still names the files of the old place: run `tuneline doctor --relocate`."
    )


def old_locations(database: Path) -> list[str]:
    """The places where the experiments of a database that was moved, or copied, kept their files before."""
    try:
        locations = {str(location) for (location,) in rows(database, "select artifact_location from experiments")}
    except UnknownSchemaError:
        return []
    return sorted(location for location in locations if _is_old(location, database))


def _is_old(location: str, database: Path) -> bool:
    """Whether this is the artifact folder of a state folder that this database has left, or was copied from."""
    folder, beside = local_folder(location), database.with_name(ARTIFACTS)
    if folder is None or folder.name != ARTIFACTS or not beside.is_dir():
        return False
    if not folder.exists():
        return True
    origin = folder.with_name(database.name)
    return not folder.samefile(beside) and origin.exists() and not origin.samefile(database)


def relocate(tracking_uri: str) -> Relocation | None:
    """Point a registry that was moved, or copied, at the files beside it; None where there is nothing to do.

    Everything is rewritten in one transaction, after a copy of the database was made. Raises StateUnusable where the
    registry is no SQLite file, or its files were not moved with it.
    """
    database = sqlite_path(tracking_uri)
    if database is None:
        raise StateUnusable(f"{tracking_uri}: only a registry in a SQLite file can have been moved with its folder.")
    with alone(database):
        locations = old_locations(database)
        if not locations:
            return None
        new = database.absolute().with_name(ARTIFACTS)
        versions = rows(database, VERSIONS)
        missing = [
            f"{name}/{version}"
            for name, version, location in versions
            if not (_folder(_rewritten(location, locations, new)) / "MLmodel").is_file()
        ]
        if versions and len(missing) == len(versions):
            raise StateUnusable(
                f"{new}: holds the files of none of the {len(versions)} versions; move {_folder(locations[0])} there, "
                "then relocate again. Nothing was changed."
            )
        backup = database.with_name(f"{database.name}.before-relocation-{time.strftime('%Y%m%d-%H%M%S')}")
        with closing(sqlite3.connect(database, isolation_level=None)) as store:
            with closing(sqlite3.connect(backup)) as copy:
                store.backup(copy)
            counts = _rewrite(store, locations, new)
    return Relocation(
        old=_folder(locations[0]).parent,
        new=new.parent,
        rows=counts,
        versions=len(versions),
        missing=missing,
        backup=backup,
    )


def _rewrite(store: sqlite3.Connection, locations: list[str], new: Path) -> dict[str, int]:
    """Replace the old places in every column that holds addresses; how many rows of each table that were."""
    counts = dict.fromkeys((table for table, _ in COLUMNS), 0)
    store.execute("begin immediate")
    for table, column in COLUMNS:
        for prefix, replacement in _prefixes(locations, new):
            changed = store.execute(
                f"update {table} set {column} = ? || substr({column}, ?) "
                f"where {column} = ? or substr({column}, 1, ?) = ? || '/'",
                (replacement, len(prefix) + 1, prefix, len(prefix) + 1, prefix),
            )
            counts[table] += changed.rowcount
    store.execute("commit")
    return counts


def _prefixes(locations: list[str], new: Path) -> list[tuple[str, str]]:
    """What addresses below the old places begin with, as address and as path, and what they shall begin with."""
    pairs = {location: new.as_uri() for location in locations if "://" in location}
    return [*pairs.items(), *((str(_folder(location)), str(new)) for location in locations)]


def _rewritten(address: str, locations: list[str], new: Path) -> str:
    for prefix, replacement in _prefixes(locations, new):
        if address == prefix or address.startswith(f"{prefix}/"):
            return replacement + address.removeprefix(prefix)
    return address


def _folder(location: str) -> Path:
    folder = local_folder(location)
    assert folder is not None, location
    return folder
