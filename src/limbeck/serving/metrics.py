"""What a server counts, as Prometheus reads it."""

from __future__ import annotations

import os
from functools import cache

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    multiprocess,
)

SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Bounds of the histogram of durations."""


class Metrics:
    """The counters of one worker; those of all workers together where there are several.

    Several workers share them through files in the folder that ``PROMETHEUS_MULTIPROC_DIR`` names.
    """

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        self.requests = Counter(
            "limbeck_requests", "Requests answered.", ("route", "status"), registry=registry
        )
        self.seconds = Histogram(
            "limbeck_request_seconds",
            "Time from a request's head to its answer.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.nodes = Counter(
            "limbeck_nodes", "Nodes answered.", ("model", "version"), registry=registry
        )
        self.changes = Counter(
            "limbeck_changes", "Changes written to an overlay.", ("model",), registry=registry
        )
        self.shadow_nodes = Counter(
            "limbeck_shadow_nodes", "Nodes that a shadow answered, too.", ("model",),
            registry=registry,
        )  # fmt: skip
        self.shadow_disagreements = Counter(
            "limbeck_shadow_disagreements",
            "Nodes for which a shadow answered another class.",
            ("model",),
            registry=registry,
        )
        self.shadow_left_out = Counter(
            "limbeck_shadow_left_out",
            "Nodes that a shadow did not answer: it is behind, or it failed.",
            ("model",),
            registry=registry,
        )
        self.in_flight = Gauge(
            "limbeck_requests_in_flight",
            "Requests being answered.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.overlay = Gauge(
            "limbeck_overlay",
            "What the overlay of a model's active version holds.",
            ("model", "what"),
            registry=registry,
            multiprocess_mode="mostrecent",
        )

        # finding a counter by its labels costs as much as counting
        self._requests_of = cache(self.requests.labels)
        self._seconds_of = cache(self.seconds.labels)
        self._nodes_of = cache(self.nodes.labels)

    def ended(self, route: str, status: int, seconds: float) -> None:
        """Count a request that has ended."""
        self.in_flight.dec()
        self._requests_of(route, status).inc()
        self._seconds_of(route).observe(seconds)

    def answered(self, model: str, version: str, count: int) -> None:
        """Count nodes that were answered."""
        self._nodes_of(model, version).inc(count)

    def text(self) -> tuple[bytes, str]:
        """The page that Prometheus reads, and its content type."""
        registry = self._registry
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry), CONTENT_TYPE_LATEST
