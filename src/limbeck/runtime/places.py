"""Where the changes of a bundle are kept: opening a file or a server by its address."""

from __future__ import annotations

import os

from limbeck.errors import missing_extra
from limbeck.runtime.bundle import Manifest
from limbeck.runtime.changes import KeptChanges


def is_redis(place: str | os.PathLike[str]) -> bool:
    """Whether an overlay's place is a Redis server and not a file."""
    return isinstance(place, str) and place.startswith(("redis://", "rediss://", "unix://"))


def open_changes(
    place: str | os.PathLike[str], manifest: Manifest, *, verify: bool = True
) -> KeptChanges:
    """Open the overlay of a bundle: a file, or a server by its address ``redis://...``.

    Raises:
        BundleError: It is no overlay, is damaged, or belongs to another bundle.
        OutputError: It cannot be made or written.
        MissingExtraError: It is on a Redis server, and redis-py is not installed.
    """
    if not is_redis(place):
        from limbeck.runtime.overlay import Overlay

        return Overlay(place, manifest, verify=verify)
    try:
        from limbeck.runtime.redis_overlay import RedisOverlay
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("limbeck"):
            raise
        raise missing_extra(error.name, "redis") from None
    return RedisOverlay(str(place), manifest, verify=verify)
