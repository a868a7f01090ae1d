"""Fixtures that the whole suite shares."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """Folder of the real graphs, named by LIMBECK_DATA; without it the test is skipped aloud."""
    folder = os.environ.get("LIMBECK_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder)
    reason = "real graphs not at hand: set LIMBECK_DATA to a folder in PyG's raw layout"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (in CI this is a failure)")
    pytest.skip(reason)


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests away from the user's cache."""
    os.environ["LIMBECK_CACHE"] = str(tmp_path_factory.mktemp("cache"))
