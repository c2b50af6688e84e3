import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tasks.errors import StateUnusable
from tasks.files.locks import locked

ROOT = Path(__file__).parents[1]


def test_waiting_ends_and_the_message_names_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "work.lock"
    said = pytest.raises(StateUnusable, match=r"work\.lock: .* been working for 0\.1 seconds")
    with locked(path, 5, "working"), said, locked(path, 0.1, "working"):
        pass


def test_a_lock_leaves_no_file_and_its_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "work.lock"
    with locked(path, 5, "working"):
        assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == []


def test_those_who_wait_for_a_file_that_is_deleted_still_go_one_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(10):
            with locked(tmp_path / "work.lock", 60, "working"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.002)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_killed_holder_holds_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom tasks.files.locks import locked\n"
        "with locked(Path(sys.argv[1]), 5, 'working'):\n    print('held', flush=True)\n    time.sleep(600)\n"
    )
    path = tmp_path / "work.lock"
    holder = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    holder.kill()
    holder.communicate()
    with locked(path, 5, "working"):
        pass
    assert not path.exists()
