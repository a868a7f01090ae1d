"""Peak memory of a stretch of work in this process."""

from __future__ import annotations

import resource
from pathlib import Path

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def reset_peak_memory() -> None:
    """Start a new peak, where the system can (Linux); elsewhere the peak is the process's."""
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")


def peak_memory_mb() -> float:
    """Largest resident memory since the last reset, in MB."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
