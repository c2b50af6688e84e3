"""The error tree: the type decides the retry, the text says where, what was found and what to do.

TunelineError
├─ PermanentError       trying again cannot help
│  ├─ InvalidRecipe     a key is wrong, or two contradict each other
│  ├─ InvalidData       sources cannot be read, or are too bad
│  ├─ InvalidBaseModel  a base cannot be found, loaded or trusted
│  ├─ WorkRefused       a proof failed
│  ├─ StateUnusable     the state folder cannot be written
│  └─ UnknownVersion    the registry has no such name, version or alias
└─ TransientError       the same work may succeed when tried again
   ├─ ServiceUnavailable
   ├─ RunGone
   └─ WorkerDied        the training process ended early
      ├─ OutOfMemory    the next try halves the micro-batch
      └─ TrainingDiverged
"""

from tasks.output.credentials import without_credentials
from tasks.output.escaping import printable


class TunelineError(Exception):
    """Anything Tuneline reports on purpose; its text stands alone on a run page.

    What the text quotes of files, recipes and addresses is escaped, and credentials are hidden, here, once.
    """

    def __init__(self, text: str = "") -> None:
        super().__init__(printable(without_credentials(text)))


class PermanentError(TunelineError):
    """Trying again cannot help: the input, the recipe or the machine has to change first."""


class InvalidRecipe(PermanentError):
    """A recipe asks for something that does not exist or contradicts itself."""


class InvalidData(PermanentError):
    """Sources that cannot be read, or too many bad records in them."""


class InvalidBaseModel(PermanentError):
    """A base model that cannot be found, loaded or trusted, or that an adapter was not trained on."""


class WorkRefused(PermanentError):
    """A proof failed: an adapter changes nothing, a merge answers differently, a version does not answer."""


class StateUnusable(PermanentError):
    """The state folder cannot be written: read-only, full, or damaged."""


class UnknownVersion(PermanentError):
    """A registry name, version or alias that does not exist."""


class TransientError(TunelineError):
    """The same work may succeed when tried again."""


class ServiceUnavailable(TransientError):
    """A server did not answer, or gave up half way."""


class RunGone(TransientError):
    """The MLflow run was deleted while it was written to; the next try makes it again."""


class WorkerDied(TransientError):
    """The training process ended without finishing; its checkpoints are kept."""


class OutOfMemory(WorkerDied):
    """The training process was refused memory; the next try halves the micro-batch."""


class TrainingDiverged(WorkerDied):
    """The loss is no longer a number; the next try starts from the last good checkpoint."""
