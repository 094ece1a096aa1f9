"""A llama-server on the loopback address, for the time of a `with` block."""

from __future__ import annotations

import json
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

START_TIMEOUT_S = 120


class LlamaServer:
    """Posts JSON to a running server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def post(self, route: str, body: dict[str, Any]) -> Any:
        """The decoded answer; urllib's HTTPError where the server refuses."""
        data = json.dumps(body).encode()
        request = urllib.request.Request(self.url + route, data, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(self.url + "/health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def llama_server(program: str, model: Path, *options: str) -> Iterator[LlamaServer]:
    """Start `program` on `model`, wait until it is ready, end it afterwards."""
    port = free_port()
    command = [program, "-m", str(model), "--host", "127.0.0.1", "--port", str(port), "-c", "512", *options]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        try:
            server = LlamaServer(port)
            deadline = time.monotonic() + START_TIMEOUT_S
            while not server.is_ready():
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read()[-2000:]}")
                time.sleep(0.2)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=30)
