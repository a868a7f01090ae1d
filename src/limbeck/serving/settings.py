"""What a server is told when it starts."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from limbeck.errors import OptionError


@dataclass(frozen=True)
class Limits:
    """How much a server takes on.

    Args:
        max_body: Bytes of a request's body; more are answered with 413.
        max_batch: Nodes of a request; more are answered with 422.
        max_neighbors: Neighbours that a node may name; more are answered with 422.
        max_concurrency: Requests that one worker has at once; others are answered with 503.
        max_waiting: Rows that may wait in one model's batch; others are answered with 429.
        window_us: How long a new node waits for others to be answered with, in microseconds. With
            0 only those are answered together that have arrived together.
    """

    max_body: int = 32 * 2**20
    max_batch: int = 4096
    max_neighbors: int = 10_000
    max_concurrency: int = 256
    max_waiting: int = 16_384
    window_us: int = 0

    def __post_init__(self) -> None:
        for name, value in dataclasses.asdict(self).items():
            least = 0 if name == "window_us" else 1
            if value < least:
                raise OptionError(f"{name} is {value}: it must be at least {least}.")


@dataclass(frozen=True)
class Settings:
    """What a server is told when it starts.

    Args:
        bundles: Folder of each model's bundle, by the model's name.
        plan: File in which the workers of a server keep which version of each model answers.
        overlay: Folder of the overlays, one file for each bundle, or a Redis server
            (``redis://...``); ``None`` for models whose nodes do not change.
        token: What a request must bear in its header ``Authorization: Bearer``; ``None`` lets all
            pass, and switches off the routes that swap bundles.
        log_requests: Log every request, not only those that fail.
        limits: How much it takes on.
    """

    bundles: dict[str, str]
    plan: str
    overlay: str | None = None
    token: str | None = None
    log_requests: bool = False
    limits: Limits = field(default_factory=Limits)

    def to_json(self) -> str:
        """As text, for the environment of worker processes."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Those that :meth:`to_json` wrote."""
        fields = json.loads(text)
        return cls(**(fields | {"limits": Limits(**fields["limits"])}))


def named_bundles(given: tuple[str, ...]) -> dict[str, str]:
    """Bundles by the names that requests call them by.

    Args:
        given: For each bundle its folder, or ``NAME=FOLDER``; without a name it is the folder's.

    Raises:
        OptionError: There is none, two have the same name, or a name is not usable in an address.
    """
    if not given:
        raise OptionError("give the folder of at least one bundle.")
    bundles: dict[str, str] = {}
    for text in given:
        name, is_named, folder = text.partition("=")
        if not is_named:
            folder, name = text, Path(text).resolve().name
        if not name or not all(letter.isalnum() or letter in "-_." for letter in name):
            raise OptionError(
                f"the name {name!r} of a bundle must be of letters, digits, '-', '_' and '.': give "
                "it as NAME=FOLDER."
            )
        if name in bundles:
            raise OptionError(f"two bundles are called {name!r}: give one as NAME=FOLDER.")
        bundles[name] = str(Path(folder).resolve())
    return bundles
