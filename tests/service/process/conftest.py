"""Servers in processes of their own, started by the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from proxy_process import Proxy, proxy_before
from proxy_server import Server
from server_process import Start, starting


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts servers over a fake predictor."""
    with starting(tmp_path) as start:
        yield start


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    """A file without which a server that is started with FAKE_GATE keeps its predictions back."""
    path = tmp_path / "gate"
    path.touch()
    return path


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "gate").touch()
    with starting(folder) as start:
        process = start("--trusted-proxies", "127.0.0.1", FAKE_GATE=str(folder / "gate"))
        with process.client() as client:
            yield Server(client, folder / "gate")


@pytest.fixture(scope="package")
def proxy(server: Server) -> Iterator[Proxy]:
    """nginx before the server, with compose's values but for one address that may administrate."""
    with proxy_before(server.port, ADMIN_NETWORK="127.0.0.9") as proxy:
        yield proxy


@pytest.fixture
def busy(server: Server) -> Iterator[Server]:
    """The server while its device answers nothing."""
    server.hold()
    try:
        yield server
    finally:
        server.release()
