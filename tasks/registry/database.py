"""MLflow's SQLite file: read without MLflow, made whole or not at all, and mended where a killed process left it torn.

Nothing here imports MLflow before a store has to be made or opened.
"""

import logging
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from tasks.errors import PermanentError, ServiceUnavailable, StateUnusable
from tasks.files.durable import sync_folder
from tasks.files.locks import locked
from tasks.steps.store import writable

SECONDS = 5.0
"""How long a locked database may take to answer."""
OPENING_SECONDS = 600.0
"""How long another process may take to make the tables; on a busy machine it takes a minute."""
ARTIFACTS = "mlflow-artifacts"
"""The folder beside the database where MLflow keeps files."""
FILLED_AT_ONCE = {"alembic_version", "experiments", "workspaces"}
"""Tables in which MLflow puts rows before anybody has used the store."""
log = logging.getLogger("tuneline")


class UnknownSchemaError(Exception):
    """A SQLite file written by another release of MLflow."""


@contextmanager
def alone(database: Path) -> Iterator[None]:
    """Make, mend or open a database while no other process does. Raises StateUnusable."""
    folder = database.absolute().parent
    with writable(folder), locked(folder / f"{database.name}.lock", OPENING_SECONDS, "opening MLflow's database"):
        yield


def rows(database: Path, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """The answer of a query; nothing where there is no database.

    Raises UnknownSchemaError for tables that this release of MLflow does not have, ServiceUnavailable for a database
    that stays locked, StateUnusable, and PermanentError for a file that is no database.
    """
    if not database.is_file() or not database.stat().st_size:
        return []
    try:
        try:
            return _read(database, query, *values)
        except sqlite3.OperationalError as fault:
            if not _unfinished(fault):
                raise
            _roll_back(database)
            return _read(database, query, *values)
    except sqlite3.OperationalError as fault:
        if "no such" in str(fault):
            raise UnknownSchemaError from fault
        raise ServiceUnavailable(f"{database}: {fault}; another process may be writing, try again.") from fault
    except sqlite3.DatabaseError as fault:
        raise PermanentError(f"{database}: {fault}; this is not MLflow's database.") from fault


def local_folder(address: str) -> Path | None:
    """The folder behind a path or a `file:` address, None for any other address."""
    parts = urlparse(address)
    return Path(url2pathname(parts.path)) if parts.scheme in ("", "file") else None


def _read(database: Path, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(_address(database, "ro"), uri=True, timeout=SECONDS)) as store:
        return store.execute(query, values).fetchall()


def _address(database: Path, mode: str) -> str:
    return f"{database.absolute().as_uri()}?mode={mode}"


def _unfinished(fault: sqlite3.OperationalError) -> bool:
    """Whether a killed writer left a journal, which only a connection that may write can roll back."""
    return fault.sqlite_errorname in ("SQLITE_READONLY_ROLLBACK", "SQLITE_READONLY_RECOVERY")


def _roll_back(database: Path) -> None:
    """Open a database for writing once: SQLite then undoes what a killed process had begun, one process at a time."""
    with closing(sqlite3.connect(_address(database, "rw"), uri=True, timeout=SECONDS)) as store:
        try:
            store.execute("select 1 from sqlite_master").fetchone()
        except sqlite3.OperationalError as fault:
            if not fault.sqlite_errorname.startswith("SQLITE_READONLY"):
                raise
            raise StateUnusable(
                f"{database}: a process was killed while it wrote, and what it had begun has to be undone; make the "
                "file and its folder writable for this account."
            ) from fault
    log.warning("%s: a process was killed while it wrote; what it had begun was undone", database)


def prepare(database: Path) -> None:
    """Make the tables of a database that is not there, beside its place and renamed when whole.

    Call it while `alone`. Tables that were never finished, as an earlier release left them when it was killed, are set
    aside first if they hold nothing; a database that holds anything is left as it is. Raises what MLflow raises.
    """
    if database.is_file() and database.stat().st_size:
        if not _holds_nothing(database) or _revision(database) == _newest_revision():
            return
        _set_aside(database)
    unfinished = database.with_name(f".{database.name}.unfinished")
    for part in _parts(unfinished):
        part.unlink()
    _make(unfinished, database.with_name(ARTIFACTS))
    unfinished.replace(database)
    sync_folder(database.absolute().parent)


def _make(database: Path, artifacts: Path) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore(f"sqlite:///{database.absolute()}", artifacts.absolute().as_uri())
    # An open connection would go on looking for its journal under the name before the renaming.
    store.engine.dispose()


def _newest_revision() -> str | None:
    """The revision of the tables that this release of MLflow makes."""
    import mlflow
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(Path(mlflow.__file__).parent / "store" / "db_migrations")).get_current_head()


def _revision(database: Path) -> str | None:
    try:
        return next((str(revision) for (revision,) in rows(database, "select version_num from alembic_version")), None)
    except UnknownSchemaError:
        return None


def _holds_nothing(database: Path) -> bool:
    """Whether these are MLflow's tables, and nobody has ever written a row into them."""
    names = [str(name) for (name,) in rows(database, "select name from sqlite_master where type = 'table'")]
    used = [name for name in names if name not in FILLED_AT_ONCE and not name.startswith("sqlite_")]
    return (
        "experiments" in names
        and len(rows(database, "select 1 from experiments limit 2")) < 2
        and not any(rows(database, f'select 1 from "{name}" limit 1') for name in used)
    )


def _set_aside(database: Path) -> None:
    aside = database.with_name(f"{database.name}.torn-{time.strftime('%Y%m%d-%H%M%S')}")
    for part in _parts(database):
        part.replace(aside.with_name(aside.name + part.name.removeprefix(database.name)))
    log.warning(
        "%s: its tables were never finished, and it holds no run and no version; it is set aside as %s and made anew",
        database,
        aside.name,
    )


def _parts(database: Path) -> list[Path]:
    """A database and what SQLite keeps beside it, as far as they are there."""
    parts = [database.with_name(f"{database.name}{end}") for end in ("", "-journal", "-wal", "-shm")]
    return [part for part in parts if part.exists()]


def sqlite_path(tracking_uri: str) -> Path | None:
    """The database file of a `sqlite:///…` address, None for any other address.

    >>> sqlite_path("sqlite:////state/mlflow.db")
    PosixPath('/state/mlflow.db')
    """
    scheme, _, rest = tracking_uri.partition(":///")
    return Path(rest.partition("?")[0]) if scheme.split("+")[0] == "sqlite" and rest else None


def is_server(tracking_uri: str) -> bool:
    """Whether an address is that of a tracking server."""
    return tracking_uri.startswith(("http://", "https://"))
