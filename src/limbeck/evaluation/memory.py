"""Memory of this process: kept from one step of a training to the next, and its peak.

glibc hands a block of more than 32 MB back to the system as soon as it is freed, and the system
fills every page with zeros when it is asked for again. A training step frees what the step after it
needs: where a layer of all nodes is that large, this took 30 % of a training, else little
(``benchmarks/kept_memory.py``). Results do not change.
"""

from __future__ import annotations

import ctypes
import platform
import resource
from functools import cache
from pathlib import Path

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Numbers of ``mallopt``'s parameters, as ``malloc.h`` has them."""


@cache
def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None


def keep_freed_memory() -> None:
    """Let this process keep the memory that it frees, to use it again; nothing without glibc.

    For a process of our own that trains: where layers are large it then holds up to two thirds more
    memory. An application that trains in its own process may want otherwise, so the library does
    not call it; the command line does.
    """
    if (glibc := _glibc()) is not None:
        glibc.mallopt(_MMAP_MAX, 0)
        glibc.mallopt(_TRIM_THRESHOLD, -1)


def reset_peak_memory() -> None:
    """Start a new peak, where the system can (Linux); elsewhere the peak is the process's.

    Memory that was kept is given back, so that the new peak is that of what comes.
    """
    if (glibc := _glibc()) is not None:
        glibc.malloc_trim(0)
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")


def peak_memory_mb() -> float:
    """Largest resident memory since the last reset, in MB."""
    if _STATUS.exists():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
