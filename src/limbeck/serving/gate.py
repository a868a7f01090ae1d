"""What every request passes, whichever way it came in: token, limits, errors, metrics, the log."""

from __future__ import annotations

import hmac
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from limbeck.errors import LimbeckError
from limbeck.serving.failures import Refusal, refusal_of
from limbeck.serving.log import log
from limbeck.serving.metrics import Metrics
from limbeck.serving.models import Models, Version
from limbeck.serving.settings import Settings

OPEN = ("/v2/health/live", "/v2/health/ready", "/healthz")
"""Paths that need no token: what watches a server has none."""

GONE = "the client went before its request was whole."

Answer: TypeAlias = tuple[bytes, dict[str, str]]
"""Body of an answer, and its headers."""

StartInfer: TypeAlias = Callable[
    [Version, bytes, str | None, Callable[[Answer | Exception], None]], None
]
"""What answers a request of the protocol: see ``Server.start_infer``."""


class JSON(Response):
    """A JSON answer; NumPy arrays are written as lists."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """The body."""
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


class Failure(NamedTuple):
    """How a request that cannot be answered is answered.

    Args:
        status: The HTTP status.
        sentence: What is wrong.
        headers: Headers beside those of every answer.
    """

    status: int
    sentence: str
    headers: dict[str, str]

    def body(self) -> bytes:
        """The answer's body."""
        return orjson.dumps({"error": self.sentence})


class Gate:
    """The server as an ASGI application: what every request passes, and the routes behind it.

    A request that comes in another way (:mod:`limbeck.serving.protocol`) calls :meth:`enter`,
    :meth:`check`, :meth:`failure_of` and :meth:`leave` as :meth:`__call__` does.

    Args:
        app: The routes.
        settings: What the server was told.
        metrics: Where requests are counted.
        models: What answers.
        start_infer: What answers requests of the protocol, for the quick way.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        metrics: Metrics,
        models: Models,
        start_infer: StartInfer,
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._bearer = None if settings.token is None else b"Bearer " + settings.token.encode()
        self._log_requests = settings.log_requests
        self._in_flight = 0
        self.limits = settings.limits
        self.models = models
        self.start_infer = start_infer
        self.infer_paths = {f"/v2/models/{name}/infer".encode(): name for name in settings.bundles}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request pass, or answer it with an error."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["app"] = self  # with it the router raises what it does not find
        method, path = scope["method"], scope["path"]
        start = self.enter()
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        sentence = None
        try:
            given = next((v for k, v in scope["headers"] if k == b"authorization"), b"")
            self.check(path, given)
            await self._app(scope, receive, noting)
        except ClientDisconnect:
            sentence = GONE
        except Exception as error:
            failure = self.failure_of(error, method, path)
            sentence = failure.sentence
            if status == 0:
                response = JSON({"error": sentence}, failure.status, headers=failure.headers)
                await response(scope, receive, noting)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self.leave(method, path, route, status, start, sentence)

    def enter(self) -> float:
        """Count a request that begins; the time, for :meth:`leave`."""
        self._in_flight += 1
        self._metrics.in_flight.inc()
        return time.perf_counter()

    def check(self, path: str, authorization: bytes) -> None:
        """Turn away a request that has begun.

        Args:
            path: Its path.
            authorization: Content of its header of that name, empty without one.

        Raises:
            Refusal: There are too many at once, or it does not bear the token.
        """
        if path in OPEN:
            return
        if self._in_flight > self.limits.max_concurrency:
            raise Refusal(
                503, f"{self._in_flight - 1} requests are being answered: try again.", retry_after=1
            )
        if self._bearer is not None and not hmac.compare_digest(authorization, self._bearer):
            raise Refusal(401, "the header Authorization must be 'Bearer' and this server's token.")

    def failure_of(self, error: Exception, method: str, path: str) -> Failure:
        """How a request that raised an error is answered; a fault of ours goes to the log."""
        if isinstance(error, HTTPException):
            sentence = f"{method} {path}: {error.detail}."
            return Failure(error.status_code, sentence, dict(error.headers or {}))
        refusal = refusal_of(error) if isinstance(error, LimbeckError) else error
        if not isinstance(refusal, Refusal):
            log("error", "fault", path=path, trace=traceback.format_exception(error))
            kind = type(error).__name__
            return Failure(500, f"a fault of ours ({kind}); the server's log has it.", {})
        headers = {}
        if refusal.retry_after is not None:
            headers["retry-after"] = str(refusal.retry_after)
        if refusal.status == 401:
            headers["www-authenticate"] = "Bearer"
        return Failure(refusal.status, str(refusal), headers)

    def leave(
        self, method: str, path: str, route: str, status: int, start: float, sentence: str | None
    ) -> None:
        """Count a request that has ended, and log it where it failed.

        Args:
            method: Its method.
            path: Its path.
            route: The route that it took.
            status: Status of its answer, 0 without one.
            start: When it began.
            sentence: What was wrong, ``None`` if nothing.
        """
        self._in_flight -= 1
        seconds = time.perf_counter() - start
        self._metrics.ended(route, status, seconds)
        if sentence is not None or self._log_requests:
            log(
                "info" if status < 500 else "warning",
                "request",
                method=method,
                path=path,
                status=status,
                milliseconds=round(1000 * seconds, 3),
                error=sentence,
            )
