"""The most memory that this process has held."""

import resource
import sys
from pathlib import Path

import torch


def peak() -> int:
    """The most bytes this process has held so far: of its GPU where it has one, else of main memory."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    status = Path("/proc/self/status")
    if status.exists():
        # Linux hands a parent's `ru_maxrss` on to the child it starts; this is the process's own.
        line = next(line for line in status.read_text("utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
