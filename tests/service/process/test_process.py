"""A real process on a real socket: a start that fails, and clients that misbehave at the socket."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from server_process import Start, predict, starting

from service.exit_status import ExitStatus


def connected(client: httpx.Client) -> socket.socket:
    address = urlsplit(str(client.base_url))
    return socket.create_connection((address.hostname, address.port))


@pytest.mark.parametrize(
    ("flags", "environment", "status", "said"),
    [
        ([], {"FAKE_BROKEN": "golden"}, ExitStatus.START_FAILED, "recorded 0.5, got 0.7"),
        (["--artifact", "nobody"], {}, ExitStatus.USAGE, "nobody: give --artifact a folder"),
    ],
)
def test_an_artifact_that_cannot_be_served_ends_the_process_and_is_named(
    start: Start, flags: list[str], environment: dict[str, str], status: ExitStatus, said: str
) -> None:
    process = start(*flags, **environment)
    assert process.left() == status
    assert said in process.log


def test_taken_port_ends_the_process(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start("--port", str(taken.getsockname()[1]))
        assert process.left() == ExitStatus.START_FAILED
    assert "--port takes another one" in process.log
    assert "address already in use" in process.log


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        starting(tmp_path_factory.mktemp("server")) as start,
        start("--max-body-bytes", "65536").client() as client,
    ):
        yield client


def test_large_bodies_are_refused_with_an_answer_not_a_reset(client: httpx.Client) -> None:
    headers = {"content-type": "application/json"}
    for size in (65_537, 1_000_000):
        announced = client.post("/predict", content=b" " * size, headers=headers)
        chunked = client.post("/predict", content=iter([b" " * 50_000] * (size // 50_000 + 1)), headers=headers)
        for response in (announced, chunked):
            assert response.status_code == 413
            assert response.json()["error"]["limit"] == 65536
        assert announced.json()["error"]["got"] == size
    assert predict(client).status_code == 200


def test_client_that_asks_first_is_told_before_it_sends(client: httpx.Client) -> None:
    with connected(client) as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: 65537\r\nexpect: 100-continue\r\n\r\n"
        )
        assert b"413" in connection.recv(4096).split(b"\r\n")[0]


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\xff\xfe\r\n\r\n", b"GET /\xff HTTP/9.9\r\n\r\n", b"POST /predict HTTP/1.1\r\n\r\n", b"\r\n"],
)
def test_garbage_on_the_socket_harms_nobody(client: httpx.Client, garbage: bytes) -> None:
    with connected(client) as connection:
        connection.sendall(garbage)
        connection.shutdown(socket.SHUT_WR)
        assert b" 500 " not in connection.recv(4096)
    assert predict(client).status_code == 200
