"""The quick way in: requests of the Open Inference Protocol, without what ASGI costs.

uvicorn makes of each request a scope, a task and messages, and Starlette a request and a response.
For ``POST /v2/models/NAME/infer`` that is twice the work of the answer itself, so the protocol of a
connection answers these itself: the same parser, the same checks, the same counts, no task. All
others, and whatever of these is out of the ordinary (pipelined, chunked, of HTTP 1.0, with
``Expect``, too long, to a client that does not read), go on to the ASGI application.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from limbeck.serving.gate import GONE, Answer, Gate
from limbeck.serving.models import Version
from limbeck.serving.open_inference import HEADER

ROUTE = "/v2/models/{model}/infer"
"""The route, as the metrics name it."""

_HEADER = HEADER.encode()


class InferCycle:
    """A request that the protocol answers itself, in the place of uvicorn's cycle.

    The attributes without an underscore are those that uvicorn's protocol reads and writes when the
    connection ends, the server stops or another request comes in behind this one.

    Args:
        protocol: The connection.
        gate: What it passes.
        keep_alive: Whether the connection stays open after the answer.
    """

    __slots__ = (
        "_gate",
        "_header_length",
        "_is_whole",
        "_path",
        "_protocol",
        "_start",
        "_version",
        "disconnected",
        "keep_alive",
        "message_event",
        "parts",
        "response_complete",
    )

    def __init__(self, protocol: InferProtocol, gate: Gate, keep_alive: bool) -> None:
        self._protocol = protocol
        self._gate = gate
        self._path = ""
        self._start = gate.enter()
        self._version: Version | None = None
        self._header_length: str | None = None
        self._is_whole = False
        self.parts: list[bytes] = []
        self.keep_alive = keep_alive
        self.disconnected = False
        self.response_complete = False
        self.message_event = self  # nobody waits for messages

    def set(self) -> None:
        """Called when the connection is lost."""

    def open(self, name: str, path: str, authorization: bytes, header_length: str | None) -> None:
        """Begin with the request's head, and refuse what may not pass."""
        self._path = path
        self._header_length = header_length
        try:
            self._gate.check(path, authorization)
            # from here on: a swap while the body comes in does not change who answers
            self._version = self._gate.models.get(name)
        except Exception as error:
            self.tell(error)

    def answer(self) -> None:
        """Answer the request, now that its body is whole."""
        assert self._version is not None
        self._is_whole = True
        body, self.parts = b"".join(self.parts), []
        try:
            self._gate.start_infer(self._version, body, self._header_length, self.tell)
        except Exception as error:
            self.tell(error)

    def tell(self, found: Answer | Exception) -> None:
        """Write the answer, or what went wrong."""
        status, sentence = 200, None
        if isinstance(found, Exception):
            failure = self._gate.failure_of(found, "POST", self._path)
            status, sentence = failure.status, failure.sentence
            body, headers = failure.body(), failure.headers
            headers["content-type"] = "application/json"
        else:
            body, headers = found
        self.response_complete = True
        self._protocol.write(status, headers, body, keep_alive=self.keep_alive)
        self._leave(status, sentence)

    def lost(self) -> None:
        """Count a request whose client went before it was whole."""
        if not self.response_complete and not self._is_whole:
            self.response_complete = True
            self._leave(0, GONE)

    def _leave(self, status: int, sentence: str | None) -> None:
        self._gate.leave("POST", self._path, ROUTE, status, self._start, sentence)


class InferProtocol(HttpToolsProtocol):
    """uvicorn's protocol of a connection, which answers requests of the protocol by itself.

    Give it as ``http`` to uvicorn. Where the application is no :class:`Gate`, all goes to it.
    """

    _answering: InferCycle | None = None
    _default_headers: list[tuple[bytes, bytes]] | None = None
    _head = b""

    def on_headers_complete(self) -> None:
        """Take a request, or pass it on."""
        self._answering = None
        gate = self.app
        if not isinstance(gate, Gate) or (name := gate.infer_paths.get(self.url)) is None:
            super().on_headers_complete()
            return
        busy = self.cycle is not None and not self.cycle.response_complete
        ordinary = (
            not busy
            and not self.expect_100_continue
            and not self.flow.write_paused
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
        )
        length, authorization, header_length = b"", b"", None
        for key, value in reversed(self.headers):  # of several the first counts, as in ASGI's way
            if key == b"content-length":
                length = value
            elif key == b"authorization":
                authorization = value
            elif key == _HEADER:
                header_length = value.decode("latin-1")
            elif key in (b"transfer-encoding", b"upgrade"):
                ordinary = False
        if not ordinary or not length.isdigit() or int(length) > gate.limits.max_body:
            super().on_headers_complete()
            return
        cycle = InferCycle(self, gate, self.parser.should_keep_alive())
        self.cycle = cycle  # type: ignore[assignment]
        self._answering = cycle
        cycle.open(name, self.url.decode("ascii"), authorization, header_length)

    def on_body(self, body: bytes) -> None:
        """Keep a part of the body."""
        cycle = self._answering
        if cycle is None:
            super().on_body(body)
        elif not cycle.response_complete:
            cycle.parts.append(body)

    def on_message_complete(self) -> None:
        """Answer."""
        cycle = self._answering
        if cycle is None:
            super().on_message_complete()
        elif not cycle.response_complete:
            cycle.answer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget a request that will not be whole."""
        super().connection_lost(exc)
        if self._answering is not None:
            self._answering.lost()

    def write(self, status: int, headers: dict[str, str], body: bytes, *, keep_alive: bool) -> None:
        """Write an answer and make ready for the next request.

        Args:
            status: Its status.
            headers: Its headers, but those that all answers have.
            body: Its body.
            keep_alive: Whether the connection stays open.
        """
        if self._default_headers is not self.server_state.default_headers:  # once a second
            self._default_headers = self.server_state.default_headers
            self._head = b"".join(b"%b: %b\r\n" % each for each in self._default_headers)
        if not self.transport.is_closing():
            own = "".join(f"{key}: {value}\r\n" for key, value in headers.items())
            close = b"" if keep_alive else b"connection: close\r\n"
            self.transport.write(
                b"%b%b%b%bcontent-length: %d\r\n\r\n%b"
                % (STATUS_LINE[status], self._head, own.encode(), close, len(body), body)
            )
            if not keep_alive:
                self.transport.close()
        self.on_response_complete()
