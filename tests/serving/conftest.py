"""A server of the tiny bundle, in this process and in one of its own."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))

from server_process import Process
from tiny_bundle import tiny_parts

from limbeck.runtime.bundle import write_bundle
from limbeck.serving import Limits, Settings, create_app


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundles") / "tiny", **tiny_parts())


@pytest.fixture
def serve(tiny: Path, tmp_path: Path) -> Iterator[Callable[..., TestClient]]:
    """Start a server in this process, with some of its settings changed."""
    clients = []

    def start(**changes: Any) -> TestClient:
        folder = tmp_path / str(len(clients))
        (folder / "overlay").mkdir(parents=True)
        limits = Limits(**changes.pop("limits", {}))
        fields = {
            "bundles": {"tiny": str(tiny)},
            "plan": str(folder / "plan.json"),
            "overlay": str(folder / "overlay"),
            "limits": limits,
        }
        client = TestClient(create_app(Settings(**fields | changes)))
        client.__enter__()
        clients.append(client)
        return client

    yield start
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(serve: Callable[..., TestClient]) -> TestClient:
    return serve()


@pytest.fixture(scope="session")
def running(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("served")
    process = Process(folder, str(tiny), "--overlay", str(folder / "overlay"))
    yield process
    process.stop()
