"""Micro-batching: new nodes of several requests answered in one call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from limbeck.errors import RequestError
from limbeck.runtime import BundledStudent
from limbeck.serving.failures import Refusal

ROWS_BESIDE = 256
"""From so many rows on a batch is computed in a thread, and the event loop goes on meanwhile."""

Logits: TypeAlias = npt.NDArray[np.float32]
"""Answers ``[b, C]``."""

Tell: TypeAlias = Callable[[Logits | Exception], None]
"""Takes an answer, or what went wrong. It raises nothing."""

T = TypeVar("T")


async def told(start: Callable[[Callable[[T | Exception], None]], None]) -> T:
    """Wait for what a call tells later.

    Args:
        start: The call; it is given what takes an answer or what went wrong.
    """
    answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def tell(found: T | Exception) -> None:
        if answer.done():  # its client has gone
            return
        if isinstance(found, Exception):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    start(tell)
    return await answer


class _Waiting(NamedTuple):
    """A request that waits for its batch: rows ``[b, F]``, lists of neighbours, who is told."""

    x: npt.NDArray[np.float32]
    neighbors: list[Any] | None
    tell: Tell


class Batcher:
    """Answers new nodes of one student, those that arrive together in one call.

    A batch starts with the first request and is computed ``window_us`` later, or as soon as it has
    ``max_batch`` rows. An error of one request is its own: where a batch fails, each of its
    requests is computed by itself.

    Args:
        student: The student.
        executor: Where batches of many rows are computed.
        window_us: How long a batch stays open, in microseconds.
        max_batch: Rows that close it.
        max_waiting: Rows that may wait.
    """

    def __init__(
        self,
        student: BundledStudent,
        executor: Executor,
        *,
        window_us: int,
        max_batch: int,
        max_waiting: int,
    ) -> None:
        self._student = student
        self._executor = executor
        self._window = window_us / 1e6
        self._max_batch = max_batch
        self._max_waiting = max_waiting
        self._waiting: list[_Waiting] = []
        self._rows = 0  # open and being computed
        self._open_rows = 0
        self._running: set[asyncio.Task[None]] = set()

    def ask(self, x: npt.NDArray[np.float32], neighbors: list[Any] | None, tell: Tell) -> None:
        """Begin to answer new nodes.

        Args:
            x: Their features, checked, ``[b, F]``.
            neighbors: For each a list of ids, or ``None``.
            tell: Called with their logits ``[b, C]``, or with a ``RequestError`` where the student
                cannot answer them; in the event loop's thread.

        Raises:
            Refusal: Too many rows wait already.
        """
        if self._rows and self._rows + len(x) > self._max_waiting:
            raise Refusal(
                429, f"{self._rows:,} rows wait for this model: try again.", retry_after=1
            )
        self._waiting.append(_Waiting(x, neighbors, tell))
        self._rows += len(x)
        self._open_rows += len(x)
        if self._open_rows >= self._max_batch:
            self._close()
        elif len(self._waiting) == 1:
            loop = asyncio.get_running_loop()
            if self._window:
                loop.call_later(self._window, self._close)
            else:
                loop.call_soon(self._close)

    def _close(self) -> None:
        batch, self._waiting, self._open_rows = self._waiting, [], 0
        if not batch:  # it was full before its time
            return
        if sum(len(each.x) for each in batch) < ROWS_BESIDE:
            self._tell(batch, self._answers(batch))
            return
        task = asyncio.get_running_loop().create_task(self._beside(batch))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _beside(self, batch: list[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        self._tell(batch, await loop.run_in_executor(self._executor, partial(self._answers, batch)))

    def _answers(self, batch: list[_Waiting]) -> list[Logits | Exception]:
        if len(batch) > 1:
            try:
                together = self._ask(
                    np.concatenate([each.x for each in batch]),
                    None
                    if all(each.neighbors is None for each in batch)
                    else [ids for each in batch for ids in each.neighbors or [[]] * len(each.x)],
                )
            except RequestError:
                pass  # one of them is wrong: each finds out for itself below
            else:
                ends = np.cumsum([len(each.x) for each in batch])[:-1]
                return list(np.split(together, ends))
        answers: list[Logits | Exception] = []
        for each in batch:
            try:
                answers.append(self._ask(each.x, each.neighbors))
            except Exception as error:
                answers.append(error)
        return answers

    def _ask(self, x: npt.NDArray[np.float32], neighbors: list[Any] | None) -> Logits:
        return self._student.predict_logits(x=x, neighbors=neighbors)

    def _tell(self, batch: list[_Waiting], answers: list[Logits | Exception]) -> None:
        for each, found in zip(batch, answers, strict=True):
            self._rows -= len(each.x)
            each.tell(found)
