"""Where everything lies and how the libraries behave: the process environment in, a State and its variables out.

Nothing heavy is imported here: a look-up pays for this module too.
"""

import logging
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import StateUnusable
from tasks.output.credentials import split_login

log = logging.getLogger("tuneline")


@dataclass(frozen=True)
class State:
    """The state folder: everything Tuneline keeps, so that deleting or moving one folder is enough."""

    root: Path

    @property
    def mlflow_db(self) -> Path:
        """MLflow's SQLite file, used while MLFLOW_TRACKING_URI is not set."""
        return self.root / "mlflow.db"

    @property
    def tracking_uri(self) -> str:
        """The MLflow that is used: MLFLOW_TRACKING_URI, without the login of a server's address, or the SQLite file."""
        return split_login(os.environ.get("MLFLOW_TRACKING_URI", ""))[0] or f"sqlite:///{self.mlflow_db.absolute()}"

    @property
    def artifacts(self) -> Path:
        """Where embedded MLflow keeps artifacts."""
        return self.root / "mlflow-artifacts"

    @property
    def steps(self) -> Path:
        """The step store's folders."""
        return self.root / "steps"

    @property
    def bases(self) -> Path:
        """Base models fetched once."""
        return self.root / "bases"

    @property
    def prefect_home(self) -> Path:
        """Prefect's database, profiles and results."""
        return self.root / "prefect"

    @property
    def ledger(self) -> Path:
        """Every promotion decision, one JSON line each."""
        return self.root / "ledger.jsonl"

    @property
    def logs(self) -> Path:
        """One log file a command."""
        return self.root / "logs"

    @property
    def scratch(self) -> Path:
        """Folders for what a process needs for a moment."""
        return self.root / "scratch"

    @property
    def locks(self) -> Path:
        """Locks of work that has no folder of its own."""
        return self.root / "locks"

    @property
    def ui_file(self) -> Path:
        """Ports and process ids of the servers of `tuneline ui`, while they run."""
        return self.root / "ui.json"

    @property
    def auth_file(self) -> Path:
        """What the Prefect server of `tuneline ui` asks for, while SERVER_AUTH is not set."""
        return self.root / "prefect-auth"


def state() -> State:
    """The state folder of this process: $TUNELINE_HOME, or .tuneline in the working folder; absolute."""
    return State(Path(os.environ.get("TUNELINE_HOME") or ".tuneline").absolute())


def make_private(root: Path) -> None:
    """Make the state folder, or close an existing one to other accounts: it holds records, passwords and models.

    Raises StateUnusable where it cannot be made, or belongs to another account.
    """
    from tasks.steps.store import writable

    with writable(root.parent):
        root.mkdir(mode=0o700, exist_ok=True)
        owner, mode = root.stat().st_uid, mode_of(root)
        if hasattr(os, "geteuid") and owner != os.geteuid():
            raise StateUnusable(
                f"{root}: belongs to another account (user id {owner}, this one is {os.geteuid()}), which could change "
                "what is registered and promoted here. Point TUNELINE_HOME to a folder of your own."
            )
        if mode & 0o077:
            root.chmod(0o700)
            log.warning("%s was open to other accounts (mode %04o); its mode is %04o now.", root, mode, mode_of(root))


def mode_of(path: Path) -> int:
    """The permission bits of a file or folder."""
    return stat.S_IMODE(path.stat().st_mode)
