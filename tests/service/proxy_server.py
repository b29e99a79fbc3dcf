"""What stands behind the proxy in tests: the real server, or one that answers as a test says; and its answers."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from urllib.parse import urlsplit

import httpx
from server_process import metric

from service.http.schemas.errors import ErrorResponse


class Server:
    """The real process; ``hold`` keeps its device from answering until ``release``."""

    def __init__(self, client: httpx.Client, gate: Path) -> None:
        self.client, self._gate = client, gate
        self.port = urlsplit(str(client.base_url)).port or 0

    def hold(self) -> None:
        self._gate.unlink()

    def release(self) -> None:
        self._gate.touch()

    def metric(self, name: str) -> float:
        return metric(self.client, name)

    @property
    def in_flight(self) -> float:
        """Requests being answered, without the one that asks."""
        return self.metric("laplora_requests_in_flight") - 1


def ask(client: httpx.Client, text: str = "a", **headers: str) -> httpx.Response:
    return client.post("/predict", json={"inputs": [{"text": text}]}, headers=headers)


def assert_error(response: httpx.Response, status: int, code: str) -> None:
    found = ErrorResponse.model_validate(response.json())
    assert (response.status_code, found.error.code) == (status, code)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"] == found.request_id
    assert response.headers["strict-transport-security"]
    assert ("retry-after" in response.headers) == (status in (429, 503, 504))


@contextmanager
def upstream(answer: Callable[[socket.socket, bytes], None]) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the port of a server that reads a request's head and leaves the rest to ``answer``; and all heads."""
    heads: list[bytes] = []

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            head = b""
            while b"\r\n\r\n" not in head and (more := self.request.recv(65536)):
                head += more
            if head:
                heads.append(head)
                answer(self.request, head)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        serving = threading.Thread(target=server.serve_forever, args=(0.02,))
        serving.start()
        try:
            yield server.server_address[1], heads
        finally:
            server.shutdown()
            serving.join()


def received(connection: socket.socket) -> bytes:
    data = b""
    while more := connection.recv(65536):
        data += more
    return data


def parsed(data: bytes) -> httpx.Response:
    head, _, body = data.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    headers = [(name, value.strip()) for name, _, value in (field.partition(":") for field in fields)]
    return httpx.Response(int(status.split()[1]), headers=headers, content=body)
