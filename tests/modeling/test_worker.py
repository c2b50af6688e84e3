"""Two workers of one folder: the second waits for the first."""

import subprocess
import sys
import time
from collections.abc import Callable

from filelock import FileLock

from tasks.modeling.events import EVENTS
from tasks.modeling.job import JOB, TrainingJob
from tasks.modeling.worker import Exit


def test_a_worker_waits_for_an_earlier_one_that_still_writes_its_checkpoint(job: Callable[..., TrainingJob]) -> None:
    made = job()
    (made.folder / JOB).write_text(made.model_dump_json(), "utf-8")
    with FileLock(made.folder / "worker.lock"):
        worker = subprocess.Popen([sys.executable, "-m", "tasks.modeling.worker", str(made.folder / JOB)])
        time.sleep(15)
        assert worker.poll() is None
        assert not (made.folder / EVENTS).exists()
    assert worker.wait(120) == Exit.done
    assert (made.folder / "summary.json").exists()
