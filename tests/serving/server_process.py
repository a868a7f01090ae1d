"""``limbeck serve`` in a process of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx


class Process:
    """``limbeck serve`` as its users start it."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        self.url = f"http://{self.address}"
        self.log = folder / "log"
        command = "from limbeck.cli import main; main()"
        port = self.address.partition(":")[2]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", command, "serve", *arguments, "--port", port],
                stderr=log,
                env=os.environ | {"LIMBECK_TOKEN": "secret"},
            )
        self.headers = {"authorization": "Bearer secret"}
        for _ in range(600):
            try:
                if httpx.get(f"{self.url}/v2/health/ready").status_code == 200:
                    return
            except httpx.TransportError:
                time.sleep(0.1)
        raise AssertionError(self.log.read_text())

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30)
