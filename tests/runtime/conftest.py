"""The tiny bundle, written where a test wants it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_bundle import tiny_parts

from limbeck.runtime.bundle import write_bundle


@pytest.fixture
def write_tiny(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny bundle, with some of its parts changed."""

    def write(name: str = "tiny", ids: Any = ("a", "b", "ç", ""), **changes: Any) -> Path:
        return write_bundle(tmp_path / name, **(tiny_parts(ids) | changes))

    return write
