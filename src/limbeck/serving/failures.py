"""Failures as answers: a status and one sentence."""

from __future__ import annotations

from limbeck.errors import LimbeckError, OutputError


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: The HTTP status.
        sentence: What is wrong, and what would be right.
        retry_after: Seconds after which to try again, ``None`` where that would not help.
    """

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.retry_after = retry_after


def refusal_of(error: LimbeckError) -> Refusal:
    """One of Limbeck's errors as an answer: 503 where the disk is at fault, else 422."""
    if isinstance(error, OutputError):
        return Refusal(503, str(error), retry_after=1)
    return Refusal(422, str(error))
