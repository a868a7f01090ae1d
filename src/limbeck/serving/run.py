"""A server as processes."""

from __future__ import annotations

import dataclasses
import os
import socket
import tempfile
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from limbeck.errors import OptionError
from limbeck.runtime import load_bundle
from limbeck.runtime.places import is_redis, open_changes
from limbeck.serving.app import create_app
from limbeck.serving.models import check_overlay
from limbeck.serving.protocol import InferProtocol
from limbeck.serving.settings import Settings

SETTINGS = "LIMBECK_SERVE"
"""Variable of the environment in which worker processes find their settings."""

STOP_SECONDS = 30
"""How long requests may take after SIGTERM before they are cut off."""

START_SECONDS = 60
"""How long a worker may take to start, or be silent, before another takes its place: its bundles
are loaded meanwhile, and a machine may be busy with others' work."""


def serve(settings: Settings, host: str, port: int, workers: int) -> None:
    """Run a server until SIGTERM or SIGINT; requests that have begun are answered.

    Every bundle is checked before the port is opened.

    Args:
        settings: What the server is told; the plan is made in a folder of its own if it is empty.
        host: Address to listen on.
        port: Port to listen on.
        workers: Number of processes.

    Raises:
        OptionError: The address is taken, or not one of this machine.
        BundleError: A bundle or an overlay cannot be read.
        OutputError: An overlay cannot be written, or its server cannot be reached.
        MissingExtraError: The overlay is a Redis server, and redis-py is not installed.
    """
    check_overlay(settings.overlay)
    for path in settings.bundles.values():
        student = load_bundle(path)
        student.manifest.require_one_class("the server")
        if settings.overlay is not None and is_redis(settings.overlay):
            open_changes(settings.overlay, student.manifest, verify=False).close()
    check_address(host, port)
    with tempfile.TemporaryDirectory(prefix="limbeck-serve-") as folder:
        settings = dataclasses.replace(settings, plan=settings.plan or f"{folder}/plan.json")
        os.environ[SETTINGS] = settings.to_json()
        if workers > 1:
            counted = Path(folder) / "metrics"
            counted.mkdir()
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(counted)
        uvicorn.run(
            "limbeck.serving.run:app_of_worker",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            loop="uvloop",
            http=InferProtocol,
            proxy_headers=False,  # nothing asks who the client is
            ws="none",
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=STOP_SECONDS,
            timeout_worker_healthcheck=START_SECONDS,
        )


def check_address(host: str, port: int) -> None:
    """Refuse an address that the server could not listen on.

    Raises:
        OptionError: It is taken, not one of this machine, or asks for rights that are not there.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(
            f"the server cannot listen on {host}:{port} ({reason}): choose another --port or "
            "--host."
        ) from None


def app_of_worker() -> ASGIApp:
    """The application of one worker process."""
    return create_app(Settings.from_json(os.environ[SETTINGS]))
