"""The server's log: lines of JSON on stderr."""

from __future__ import annotations

import sys
import time
from typing import Any

import orjson


def log(level: str, event: str, **fields: Any) -> None:
    """Write one line of JSON on stderr.

    Args:
        level: ``"info"``, ``"warning"`` or ``"error"``.
        event: What happened.
        fields: What belongs to it; what JSON has no form for is written as text.
    """
    line = {"time": time.time(), "level": level, "event": event, **fields}
    sys.stderr.write(orjson.dumps(line, default=str).decode() + "\n")
