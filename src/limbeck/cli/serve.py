"""``limbeck serve``: answer requests over HTTP."""

from __future__ import annotations

import os
from typing import Annotated

from cyclopts import Parameter

from limbeck.errors import OptionError, missing_extra


def serve(
    *bundles: str,
    host: str = "127.0.0.1",
    port: int = 8080,
    workers: int = 1,
    overlay: Annotated[str | None, Parameter(env_var="LIMBECK_OVERLAY")] = None,
    token: Annotated[str | None, Parameter(env_var="LIMBECK_TOKEN")] = None,
    max_body_mb: int = 32,
    max_batch: int = 4096,
    max_neighbors: int = 10_000,
    max_concurrency: int = 256,
    window_us: int = 0,
    log_requests: bool = False,
) -> None:
    """Serve bundles over HTTP: the Open Inference Protocol, and /predict for people.

    Args:
        bundles: Folder of each bundle, or NAME=FOLDER to call the model by another name.
        host: Address to listen on.
        port: Port to listen on.
        workers: Processes; each holds its own models and answers on one thread.
        overlay: Folder of the files that keep new and changed nodes, made if it is not there; or a
            Redis server for several replicas, redis://HOST:PORT/DATABASE, with a password better
            given as the environment's LIMBECK_OVERLAY. Without it nodes cannot change.
        token: What requests must bear in the header "Authorization: Bearer", better given as the
            environment's LIMBECK_TOKEN. Without it all pass, and bundles cannot be swapped.
        max_body_mb: Megabytes of a request.
        max_batch: Nodes of a request.
        max_neighbors: Neighbours that a node may name.
        max_concurrency: Requests that one worker has at once; others are told to come again.
        window_us: Microseconds that a new node waits for others to be answered with; with 0 only
            those are that arrive together.
        log_requests: Log every request on stderr, not only those that fail.
    """
    if not 0 < port < 65536:
        raise OptionError(f"option --port is {port}: it must be 1 to 65535.")
    if workers < 1:
        raise OptionError(f"option --workers is {workers}: it must be at least 1.")
    try:
        from limbeck.runtime.places import is_redis
        from limbeck.serving import Limits, Settings, named_bundles
        from limbeck.serving import serve as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("limbeck"):
            raise
        raise missing_extra(error.name, "serve") from None
    if overlay is not None and not is_redis(overlay):
        overlay = os.path.abspath(overlay)
    limits = Limits(
        max_body=max_body_mb * 2**20,
        max_batch=max_batch,
        max_neighbors=max_neighbors,
        max_concurrency=max_concurrency,
        window_us=window_us,
    )
    settings = Settings(
        bundles=named_bundles(bundles),
        plan="",
        overlay=overlay or None,
        token=token or None,
        log_requests=log_requests,
        limits=limits,
    )
    run(settings, host, port, workers)
