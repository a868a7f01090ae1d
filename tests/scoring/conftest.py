"""A small bundle whose answers are known by hand."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# the tiny bundle is that of the runtime's own tests
sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from tiny_bundle import manifest_fields, tiny_parts

from limbeck.runtime.bundle import write_bundle


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """Write the tiny bundle; fields of its manifest and arrays of its store can be added."""

    def write(name: str = "tiny", *, store: dict[str, Any] | None = None, **fields: Any) -> Path:
        parts = tiny_parts()
        parts["manifest"] = manifest_fields(**fields)
        parts["store"] |= store or {}
        return write_bundle(tmp_path / name, **parts)

    return write
