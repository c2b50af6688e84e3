"""A signal ends the process wherever it arrives; every case in a process of its own."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BEGINNING = """
import os, signal, sys, time, weakref
from flows.cli.signals import exit_code, exit_when_asked, leave
number = signal.Signals[sys.argv[1]]
exit_when_asked()

def send():
    os.kill(os.getpid(), number)
    time.sleep(0.05)

class Dying:
    def __del__(self):
        send()

try:
"""
ENDING = """
    time.sleep(20)
except (SystemExit, KeyboardInterrupt) as end:
    code = exit_code(end)
leave()
sys.exit(code)
"""
CASES = {
    "a __del__": "    dying = Dying(); del dying",
    "a callback": "    thing = {*()}; watch = weakref.ref(thing, lambda _: send()); del thing",
    "a bare except": "    try: send()\n    except BaseException: pass",
    "a __del__, twice": "    dying = [Dying(), Dying()]; dying.clear()",
    "Prefect's handler": (
        "    from prefect.utilities.engine import capture_sigterm\n"
        "    with capture_sigterm():\n        dying = Dying(); del dying; time.sleep(20)"
    ),
}


def outcome(case: str, number: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", f"{BEGINNING}{CASES[case]}{ENDING}", number],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize("case", list(CASES))
@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_signal_is_not_lost_in(case: str, number: str, code: int) -> None:
    done = outcome(case, number)
    assert done.returncode == code, done.stderr
    how = "Interrupted" if number == "SIGINT" else "Ended by SIGTERM"
    assert done.stderr == f"{how}. Finished steps are kept; run the same command again to continue.\n"


def test_an_exception_that_somebody_keeps_is_raised_again_later() -> None:
    code = f"import flows.cli.signals; flows.cli.signals.LATEST_SECONDS = 0.5\n{BEGINNING}"
    keeps = "    kept = []\n    try: send()\n    except BaseException as end: kept.append(end)"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}{keeps}{ENDING}", "SIGTERM"], cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 128 + signal.SIGTERM


def test_the_ending_itself_is_left_alone() -> None:
    """What runs while the exception is on its way is not interrupted by it once more."""
    ends = "    try: send()\n    finally:\n        time.sleep(1); sys.stderr.write('ended whole\\n')"
    done = subprocess.run(
        [sys.executable, "-c", f"{BEGINNING}{ends}{ENDING}", "SIGTERM"], cwd=ROOT, capture_output=True, timeout=60
    )
    assert done.returncode == 128 + signal.SIGTERM
    assert done.stderr.startswith(b"ended whole\n")


def test_what_nohup_ignores_stays_ignored() -> None:
    code = (
        "import signal; from flows.cli.signals import exit_when_asked; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "exit_when_asked(); assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
