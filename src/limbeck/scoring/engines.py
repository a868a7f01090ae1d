"""Who does the work: this process, several on this machine, or a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import Any

from limbeck.errors import InputError, OptionError, OutputError, missing_extra
from limbeck.scoring.parts import PartResult
from limbeck.scoring.work import Work, score_part

LOCAL = "local"
"""In the place of an address: a cluster of processes on this machine."""


def in_this_process(works: Sequence[Work]) -> Iterator[PartResult]:
    """Score parts one after the other."""
    yield from map(score_part, works)


def in_processes(works: Sequence[Work], workers: int) -> Iterator[PartResult]:
    """Score parts in several processes; results come as they are finished.

    Raises:
        OutputError: A process was killed.
    """
    # spawned, not forked: a forked copy of ONNX Runtime's or Arrow's threads may hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_end_with_parent) as pool:
        futures = [pool.submit(score_part, work) for work in works]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise OutputError(
                "a process that was scoring was killed, perhaps for lack of memory: give the same "
                "command again to go on, with fewer --workers."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def under_dask(works: Sequence[Work], address: str, workers: int) -> Iterator[PartResult]:
    """Score parts on a Dask cluster, whose workers see the same files.

    Args:
        works: The parts.
        address: Of the scheduler, such as ``tcp://10.0.0.7:8786``; or ``"local"`` for a cluster of
            ``workers`` processes of one thread each, which ends with the job.
        workers: Number of processes of a local cluster.

    Raises:
        MissingExtraError: Dask is not installed.
        OptionError: No scheduler answers there.
    """
    try:
        import distributed
    except ModuleNotFoundError as error:
        raise missing_extra(error.name or "distributed", "scale") from None
    if address == LOCAL:
        cluster: Any = distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
        )
        with cluster, distributed.Client(cluster) as client:
            yield from _mapped(distributed, client, works)
        return
    try:
        client = distributed.Client(address, timeout="10s")
    except (OSError, ValueError, TimeoutError) as error:
        raise OptionError(
            f"no Dask scheduler answers at {address!r}: give its address, or 'local'."
        ) from error
    with client:
        yield from _mapped(distributed, client, works)


def _mapped(distributed: Any, client: Any, works: Sequence[Work]) -> Iterator[PartResult]:
    futures = client.map(score_part, works, pure=False)
    try:
        for future in distributed.as_completed(futures):
            yield future.result()
    except distributed.KilledWorker as error:
        raise InputError(
            "several Dask workers ended while they scored the same part: see their logs."
        ) from error
    finally:
        client.cancel(futures)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone, killed or not.

    A pool's processes hold both ends of the queue that they wait on, so they would wait forever.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
