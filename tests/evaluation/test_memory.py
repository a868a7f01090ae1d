"""Memory of a process: what is freed is kept where asked, and a new peak begins without it."""

import platform
import resource
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="the allocator is not glibc's"
)

PAGES = """
import resource
from limbeck.evaluation.memory import keep_freed_memory, peak_memory_mb, reset_peak_memory

def faults(megabytes):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    b"x" * (megabytes * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""


def in_process(code: str) -> list[float]:
    """What a fresh process prints."""
    command = [sys.executable, "-c", PAGES + code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(word) for word in done.stdout.split()]


def test_pages_are_asked_for_once():
    page = resource.getpagesize()
    first, second = in_process("print(faults(64), faults(64))")
    assert min(first, second) >= 63 * 2**20 / page
    first, second = in_process("keep_freed_memory(); print(faults(64), faults(64))")
    assert first >= 63 * 2**20 / page
    assert second < 100


def test_a_thread_may_ask_for_more_than_an_arena_holds():
    threaded = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "keep_freed_memory()\n"
        "with ThreadPoolExecutor(2) as pool:\n"
        "    print(*pool.map(lambda n: len(b'x' * (n * 2**20)), [100, 200]))"
    )
    assert in_process(threaded) == [100 * 2**20, 200 * 2**20]


def test_a_new_peak_begins_without_what_was_kept():
    before, high, after = in_process(
        "keep_freed_memory(); reset_peak_memory(); print(peak_memory_mb())\n"
        "faults(256); print(peak_memory_mb())\n"
        "reset_peak_memory(); print(peak_memory_mb())"
    )
    assert high > before + 250
    assert after < before + 50
