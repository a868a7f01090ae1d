"""The server as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

import limbeck
from limbeck.errors import LimbeckError
from limbeck.runtime import OverlaidStudent
from limbeck.runtime.explain import reasons_of
from limbeck.runtime.kernel import softmax
from limbeck.serving import open_inference, questions
from limbeck.serving.batching import Logits, Tell, told
from limbeck.serving.failures import Refusal
from limbeck.serving.gate import JSON, Gate
from limbeck.serving.log import log
from limbeck.serving.metrics import Metrics
from limbeck.serving.models import Models, Version, overlaid
from limbeck.serving.openapi import openapi, openapi_page
from limbeck.serving.questions import Question, read_json
from limbeck.serving.settings import Settings

MAX_SHADOWS = 64
"""Requests that may wait for a shadow; it leaves out others."""


class Server:
    """The routes, and what they share.

    Args:
        settings: What the server was told.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.limits = settings.limits
        self.metrics = Metrics()
        # one thread: a batch of thousands of rows takes as long as that, and others wait
        self.computing = ThreadPoolExecutor(1, thread_name_prefix="limbeck-compute")
        self.writing = ThreadPoolExecutor(4, thread_name_prefix="limbeck-write")
        self.models = Models(settings, self.computing, self.writing)
        self.is_ready = False
        self._shadows: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------ Open Inference Protocol

    async def infer(self, request: Request) -> Response:
        """Answer nodes in tensors, JSON or binary."""
        version = self._version(request)
        body = await read_body(request, self.limits.max_body)
        header_length = request.headers.get(open_inference.HEADER)
        content, headers = await told(partial(self.start_infer, version, body, header_length))
        return Response(content, headers=headers)

    def start_infer(
        self,
        version: Version,
        body: bytes,
        header_length: str | None,
        tell: Callable[[tuple[bytes, dict[str, str]] | Exception], None],
    ) -> None:
        """Begin to answer nodes in tensors; the routes and the quick way both come here.

        Args:
            version: What answers.
            body: The request's body.
            header_length: Content of its header :data:`open_inference.HEADER`, ``None`` without.
            tell: Called once with the body of the answer and its headers, or with what went wrong;
                at once or later, in this thread.

        Raises:
            LimbeckError: The request cannot be answered.
            Refusal: The request is none of the protocol, or goes beyond a limit.
        """
        asked = open_inference.read_request(body, header_length, self.limits.max_batch)

        def answered(logits: Logits | Exception) -> None:
            if isinstance(logits, Exception):
                tell(logits)
                return
            try:
                answer = open_inference.write_answer(
                    asked, logits, version.student.manifest, version.model, version.number
                )
            except Exception as error:
                tell(error)
            else:
                tell(answer)

        self._ask(version, asked.question, answered)

    async def live(self, _: Request) -> Response:
        """Say that the process runs."""
        return JSON({"live": True})

    async def ready(self, _: Request) -> Response:
        """Say whether requests are taken."""
        return JSON({"ready": self.is_ready}, 200 if self.is_ready else 503)

    async def model_ready(self, request: Request) -> Response:
        """Say whether a model answers."""
        version = self._version(request)
        return JSON({"name": version.model, "ready": True})

    async def server_metadata(self, _: Request) -> Response:
        """Tell name, version and extensions."""
        return JSON(
            {
                "name": "limbeck",
                "version": limbeck.__version__,
                "extensions": ["binary_tensor_data", "model_repository"],
            }
        )

    async def model_metadata(self, request: Request) -> Response:
        """Tell a model's inputs and outputs."""
        version = self._version(request)
        plan = self.models.plan(version.model)
        student = version.student
        return JSON(
            open_inference.metadata(
                student.manifest,
                version.model,
                sorted(plan.used(), key=int),
                has_text_ids=student.store.has_text_ids,
            )
        )

    async def index(self, _: Request) -> Response:
        """List the models as the repository extension does."""
        return JSON(
            [
                {"name": each.model, "version": each.number, "state": "READY", "reason": ""}
                for each in self.models.versions()
            ]
        )

    # ------------------------------------------------------------ for people

    async def predict(self, request: Request) -> Response:
        """Answer nodes with the names of their classes."""
        document = read_json(await read_body(request, self.limits.max_body))
        questions.check_fields(document, questions.PREDICT)
        version = self.models.get(
            questions.a_string(document, "model"), questions.a_string(document, "version")
        )
        top = questions.a_count(document, "top_k", 1)
        explain = questions.a_flag(document, "explain", False)
        question = questions.read_question(document, self.limits.max_batch)
        logits = await self._answer(version, question)
        manifest = version.student.manifest
        probabilities = softmax(logits, manifest.temperature)
        order = np.argsort(-probabilities, axis=1, kind="stable")[:, :top]
        answers: list[dict[str, Any]] = [
            {
                "classes": [
                    {"class": manifest.classes[c], "probability": float(row[c])}
                    for c in best.tolist()
                ]
            }
            for row, best in zip(probabilities, order, strict=True)
        ]
        if question.nodes is not None:
            answers = [
                {"node": node, **answer}
                for node, answer in zip(question.nodes, answers, strict=True)
            ]
        if explain:
            call = partial(version.student.explain, **question.asked_with())
            explanation = await self._in(self.computing, call)
            for answer, reason in zip(answers, reasons_of(explanation, len(answers)), strict=True):
                answer |= reason
        return JSON({"model": version.model, "version": version.number, "answers": answers})

    async def list_models(self, _: Request) -> Response:
        """List models, their versions and what they are for."""
        return JSON({"models": [self._described(name) for name in self.models.names()]})

    # ------------------------------------------------------------ changes

    async def upsert(self, request: Request) -> Response:
        """Add nodes, or change known ones; on the disk before it is answered."""
        document = read_json(await read_body(request, self.limits.max_body))
        questions.check_fields(document, questions.UPSERT)
        version, student = self._overlaid(document)
        group = questions.read_group(document, student.width)
        call = partial(student.upsert, group.ids, group.x, neighbors=group.neighbors)
        return await self._changed(version, call, len(group.ids))

    async def delete(self, request: Request) -> Response:
        """Delete nodes with all their edges."""
        document = read_json(await read_body(request, self.limits.max_body))
        questions.check_fields(document, questions.DELETE)
        version, student = self._overlaid(document)
        ids = questions.a_list(document, "nodes")
        if not ids:
            raise Refusal(422, "nodes must be a list of at least one id.")
        return await self._changed(version, partial(student.delete, ids), len(ids))

    async def edges(self, request: Request) -> Response:
        """Add edges, or remove them: those that are added first."""
        document = read_json(await read_body(request, self.limits.max_body))
        questions.check_fields(document, questions.EDGES)
        version, student = self._overlaid(document)
        added, removed = (questions.a_list(document, name) for name in ("add", "remove"))
        undirected = questions.a_flag(document, "undirected", True)
        if bool(added) == bool(removed):
            raise Refusal(422, "give either add or remove, a list of pairs of ids.")
        change = student.add_edges if added else student.remove_edges
        pairs = added or removed or []
        return await self._changed(
            version, partial(change, pairs, undirected=undirected), len(pairs)
        )

    async def staleness(self, request: Request) -> Response:
        """Tell how far nodes have moved from the bundle."""
        document = read_json(await read_body(request, self.limits.max_body))
        questions.check_fields(document, questions.DELETE)
        _, student = self._overlaid(document)
        ids = questions.a_list(document, "nodes")
        if not ids or len(ids) > self.limits.max_batch:
            raise Refusal(422, f"nodes must be a list of 1 to {self.limits.max_batch:,} ids.")
        found = student.staleness(ids)
        return JSON(
            {
                "nodes": [
                    {"node": node, "is_new": new, "is_changed": changed, "unknown_neighbors": n}
                    for node, new, changed, n in zip(
                        ids, *(values.tolist() for values in found), strict=True
                    )
                ]
            }
        )

    # ------------------------------------------------------------ versions

    async def swap(self, request: Request) -> Response:
        """Let another bundle answer."""
        name, path = await self._bundle_of(request)
        if path is None:
            raise Refusal(422, "bundle must be the folder of a bundle.")
        version = await self.models.swap(name, path)
        log("info", "swapped", model=name, version=version.number, bundle=path)
        return JSON(self._described(name))

    async def shadow(self, request: Request) -> Response:
        """Let another bundle answer beside the active one, unseen; null ends that."""
        name, path = await self._bundle_of(request)
        await self.models.set_shadow(name, path)
        log("info", "shadow", model=name, bundle=path)
        return JSON(self._described(name))

    async def rollback(self, request: Request) -> Response:
        """Let the version answer again that did before."""
        self._check_may_swap()
        name = request.path_params["model"]
        version = await self.models.rollback(name)
        log("info", "rolled back", model=name, version=version.number)
        return JSON(self._described(name))

    # ------------------------------------------------------------ pages

    async def metrics_page(self, _: Request) -> Response:
        """What Prometheus reads."""
        for name in self.models.names():
            student = self.models.get(name).student
            if isinstance(student, OverlaidStudent):
                try:
                    counts = await self._in(self.writing, student.overlay.counts)
                except LimbeckError as error:  # its server is away; the other metrics tell of that
                    log("error", "cannot count the overlay", model=name, error=str(error))
                    continue
                for what, value in counts._asdict().items():
                    self.metrics.overlay.labels(name, what).set(value)
        content, kind = self.metrics.text()
        return Response(content, media_type=kind)

    async def openapi_document(self, _: Request) -> Response:
        """The OpenAPI document."""
        return JSON(openapi(self.settings))

    async def openapi_html(self, _: Request) -> Response:
        """The same as a page."""
        return HTMLResponse(openapi_page(openapi(self.settings)))

    # ------------------------------------------------------------ shared

    def routes(self) -> list[Route]:
        """The routes, the most used first."""
        model = "/v2/models/{model}"
        version = model + "/versions/{version}"
        return [
            Route(model + "/infer", self.infer, methods=["POST"]),
            Route("/predict", self.predict, methods=["POST"]),
            Route(version + "/infer", self.infer, methods=["POST"]),
            Route("/nodes", self.upsert, methods=["PUT"]),
            Route("/nodes", self.delete, methods=["DELETE"]),
            Route("/nodes/staleness", self.staleness, methods=["POST"]),
            Route("/edges", self.edges, methods=["POST"]),
            Route("/models", self.list_models),
            Route("/models/{model}/swap", self.swap, methods=["POST"]),
            Route("/models/{model}/rollback", self.rollback, methods=["POST"]),
            Route("/models/{model}/shadow", self.shadow, methods=["POST"]),
            Route("/v2", self.server_metadata),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/healthz", self.live),
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route(model, self.model_metadata),
            Route(model + "/ready", self.model_ready),
            Route(version, self.model_metadata),
            Route(version + "/ready", self.model_ready),
            Route("/metrics", self.metrics_page),
            Route("/openapi.json", self.openapi_document),
            Route("/", self.openapi_html),
        ]

    @asynccontextmanager
    async def lifespan(self, _: ASGIApp) -> AsyncIterator[None]:
        """Load the models, follow the plan, and end what still runs."""
        await self._in(self.writing, self.models.load)
        following = asyncio.get_running_loop().create_task(self.models.follow())
        self.is_ready = True
        log("info", "ready", models=self.models.names())
        try:
            yield
        finally:
            self.is_ready = False
            following.cancel()
            await asyncio.gather(*self._shadows, return_exceptions=True)
            self.computing.shutdown()
            self.writing.shutdown()
            for version in self.models.versions():
                if isinstance(version.student, OverlaidStudent):
                    version.student.close()
            log("info", "stopped")

    def _version(self, request: Request) -> Version:
        parameters = request.path_params
        return self.models.get(parameters["model"], parameters.get("version"))

    async def _answer(self, version: Version, question: Question) -> Logits:
        return await told(partial(self._ask, version, question))

    def _ask(self, version: Version, question: Question, tell: Tell) -> None:
        def answered(logits: Logits | Exception) -> None:
            if not isinstance(logits, Exception):
                self.metrics.answered(version.model, version.number, len(logits))
                self._show_shadow(version, question, logits)
            tell(logits)

        question.ask(version, self.limits.max_neighbors, answered)

    def _show_shadow(self, version: Version, question: Question, logits: Logits) -> None:
        shadow = self.models.shadow(version.model)
        if shadow is None or shadow.number == version.number:
            return
        if len(self._shadows) >= MAX_SHADOWS:
            self.metrics.shadow_left_out.labels(version.model).inc(len(logits))
            return
        task = asyncio.get_running_loop().create_task(self._compare(shadow, question, logits))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _compare(self, shadow: Version, question: Question, logits: Logits) -> None:
        """Ask a shadow the same, and count where it answers another class."""
        try:
            call = partial(shadow.student.predict_logits, **question.asked_with())
            answer = await self._in(self.computing, call)
        except LimbeckError as error:
            self.metrics.shadow_left_out.labels(shadow.model).inc(len(logits))
            log("warning", "shadow cannot answer", model=shadow.model, error=str(error))
            return
        differ = int((answer.argmax(axis=1) != logits.argmax(axis=1)).sum())
        self.metrics.shadow_nodes.labels(shadow.model).inc(len(logits))
        self.metrics.shadow_disagreements.labels(shadow.model).inc(differ)

    def _overlaid(self, document: dict[str, Any]) -> tuple[Version, OverlaidStudent]:
        version = self.models.get(questions.a_string(document, "model"))
        return version, overlaid(version)

    async def _changed(self, version: Version, call: Callable[[], int], count: int) -> Response:
        number = await self._in(self.writing, call)
        self.metrics.changes.labels(version.model).inc(count)
        return JSON(
            {"model": version.model, "version": version.number, "change": number, "count": count}
        )

    async def _bundle_of(self, request: Request) -> tuple[str, str | None]:
        self._check_may_swap()
        document = read_json(await read_body(request, self.limits.max_body))
        questions.check_fields(document, ("bundle",))
        if "bundle" not in document:
            raise Refusal(422, "bundle must be the folder of a bundle.")
        return request.path_params["model"], questions.a_string(document, "bundle")

    def _check_may_swap(self) -> None:
        if self.settings.token is None:
            raise Refusal(403, "bundles are swapped on a server with a token only: give --token.")

    def _described(self, name: str) -> dict[str, Any]:
        plan = self.models.plan(name)
        manifest = self.models.get(name).student.manifest
        return {
            "model": name,
            "active": plan.active,
            "previous": plan.previous,
            "shadow": plan.shadow,
            "versions": {number: plan.paths[number] for number in sorted(plan.used(), key=int)},
            "method": manifest.method,
            "student": manifest.student,
            "graph": manifest.graph.name,
            "classes": list(manifest.classes),
            "width": manifest.width,
            "known_nodes": manifest.graph.counts["nodes"],
        }

    @staticmethod
    async def _in(executor: ThreadPoolExecutor, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(executor, call)


def create_app(settings: Settings) -> Gate:
    """The server as an ASGI application."""
    server = Server(settings)

    # a bare router: Starlette's own application would answer errors before the gate does
    router = Router(server.routes(), redirect_slashes=False, lifespan=server.lifespan)
    return Gate(router, settings, server.metrics, server.models, server.start_infer)


async def read_body(request: Request, most: int) -> bytes:
    """A request's body.

    Raises:
        Refusal: It has more bytes than ``most``.
    """
    given = request.headers.get("content-length", "0")
    too_long = Refusal(413, f"the body has more than {most:,} bytes, which this server reads.")
    if given.isdigit() and int(given) > most:
        raise too_long
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise too_long
        parts.append(part)
    return b"".join(parts)
