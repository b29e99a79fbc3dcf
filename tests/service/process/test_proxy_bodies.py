"""Bodies and slow clients at the real nginx: bounded, and never before the server."""

from __future__ import annotations

import os
import re
import socket
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from proxy_process import Proxy, defaults, needs_nginx, proxy_before
from proxy_server import Server, ask, assert_error, parsed, received, upstream
from server_process import until

pytestmark = needs_nginx

#: Another caller than the ordinary one, who comes from 127.0.0.1.
SLOW = "127.0.0.2"


def take_a_body(connection: socket.socket, head: bytes) -> None:
    """Read a body to its end, and answer 204."""
    left = sum(int(found) for found in re.findall(rb"(?i)content-length: (\d+)", head))
    left -= len(head.partition(b"\r\n\r\n")[2])
    while left > 0:
        left -= len(connection.recv(65536))
    connection.sendall(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")


def test_bodies_above_the_limit_are_413_and_never_reach_the_server() -> None:
    sizes = {"MAX_BODY_BYTES": 200_000, "MAX_JOB_BYTES": 600_000}
    with upstream(take_a_body) as (port, heads), proxy_before(port, **sizes) as proxy, proxy.client() as client:
        for path, limit in (("/predict", 200_000), ("/evaluate/jobs", 600_000), ("/v1/evaluate/jobs", 600_000)):
            heads.clear()
            announced = client.post(path, content=b" " * (limit + 1))
            chunked = client.post(path, content=iter([b" " * 50_000] * (limit // 50_000 + 1)))
            for response in (announced, chunked):
                assert_error(response, 413, "body_too_large")
                assert response.json()["error"]["limit"] == limit
            assert announced.json()["error"]["got"] == limit + 1
            assert "got" not in chunked.json()["error"]
            assert heads == []
            assert client.post(path, content=b" " * limit).status_code == 204


def drip(proxy: Proxy, begin: bytes, drop: bytes, drops: int | None) -> bytes:
    """Send ``begin``, then ``drop`` every 20 ms, ``drops`` times or for ever; return what comes until the close."""
    # On a slow machine its time may be over before TLS is agreed upon.
    with suppress(ConnectionError, ssl.SSLError), proxy.connected(SLOW) as connection:
        connection.sendall(begin)
        connection.settimeout(0.02)
        while True:
            try:
                return connection.recv(65536)
            except TimeoutError:
                if drops != 0:
                    connection.sendall(drop)
                    drops = None if drops is None else drops - 1
    return b""


ENDLESS_HEAD = (b"POST /predict HTTP/1.1\r\nhost: localhost\r\nx: ", b"a", None)
STALLED_BODY = (
    b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 99999\r\n\r\n{",
    b" ",
    20,
)


def test_slow_clients_are_closed_and_the_server_never_sees_them(server: Server) -> None:
    short = {"HEAD_TIMEOUT_S": 2, "BODY_TIMEOUT_S": 1, "CONNECTIONS": 40, "BODIES_OF_ONE": 40}
    # So that there is a count of them.
    assert ask(server.client).status_code == 200
    before = server.metric('laplora_requests_total{method="POST",route="/predict",status="200"}')
    with (
        proxy_before(server.port, **short, REQUESTS_PER_S=1000, BURST=1000) as proxy,
        proxy.client() as client,
        ThreadPoolExecutor(200) as pool,
    ):
        # 100 that send a head for ever, and 100 that begin a body and stop: of these, 40 fit the limit of an address.
        slow = [pool.submit(drip, proxy, *(ENDLESS_HEAD, STALLED_BODY)[i % 2]) for i in range(200)]
        answered = 0
        while not all(future.done() for future in slow):
            assert ask(client, "row 77").status_code == 200
            answered += 1
            assert server.in_flight == 0
        said = [future.result() for future in slow]
        assert server.metric('laplora_requests_total{method="POST",route="/predict",status="200"}') == before + answered
    assert set(said[0::2]) == {b""}
    assert {answer.split(b"\r\n")[0] for answer in said[1::2]} <= {b"", b"HTTP/1.1 429 Too Many Requests"}
    refused = sum(answer != b"" for answer in said[1::2])
    assert 0 < refused <= 60


def test_a_patient_body_never_reaches_the_server_and_holds_one_of_its_addresses_connections(server: Server) -> None:
    def be_patient() -> None:
        # Refused while the other client's request is the one that may be; in the end closed by nginx as it leaves.
        while drip(proxy, *STALLED_BODY[:2], None):
            continue

    with ThreadPoolExecutor(1) as pool, proxy_before(server.port, BODY_TIMEOUT_S=60, CONNECTIONS=1) as proxy:
        patient = pool.submit(be_patient)
        with proxy.client(source=SLOW) as same, proxy.client() as other:
            until(lambda: ask(same).status_code == 429)
            assert_error(ask(same), 429, "too_many_requests")
            assert ask(other).status_code == 200
            assert server.in_flight == 0
            assert not patient.done()


@contextmanager
def begun(proxy: Proxy, path: str, source: str) -> Iterator[Callable[[], httpx.Response]]:
    """Yield an admitted POST of 400,000 bytes, half of them sent; calling it sends the rest and returns the answer."""
    half = b" " * 200_000
    with proxy.connected(source) as connection:
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\n"
        head += f"connection: close\r\nexpect: 100-continue\r\ncontent-length: {2 * len(half)}\r\n\r\n"
        connection.sendall(head.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 100 ")  # nginx asks for the body of what it lets in
        connection.sendall(half)

        def finish() -> httpx.Response:
            connection.sendall(half)
            return parsed(received(connection))

        yield finish


@pytest.mark.parametrize(
    ("path", "limit", "other"), [("/evaluate/jobs", "UPLOADS", "/predict"), ("/predict", "BODIES", "/evaluate/jobs")]
)
def test_bodies_of_all_addresses_together_are_bounded(path: str, limit: str, other: str) -> None:
    with (
        upstream(take_a_body) as (port, _),
        proxy_before(port, BODY_TIMEOUT_S=60, **{limit: 2}) as proxy,
        begun(proxy, path, "127.0.0.2") as first,
        begun(proxy, path, "127.0.0.3") as second,
        proxy.client(source="127.0.0.4") as third,
    ):
        assert_error(third.post(path, content=b" " * 300_000), 429, "too_many_requests")
        # What has no body takes no room, and the other kind has room of its own.
        assert third.get(path).status_code == 204
        assert third.post(other, content=b" " * 300_000).status_code == 204
        assert first().status_code == 204
        until(lambda: third.post(path, content=b" " * 300_000).status_code == 204)
        assert second().status_code == 204


@pytest.mark.parametrize(("path", "limit"), [("/evaluate/jobs", "UPLOADS_OF_ONE"), ("/predict", "BODIES_OF_ONE")])
def test_one_address_has_few_of_the_bodies_however_slowly_it_sends_them(path: str, limit: str) -> None:
    most = int(defaults()[f"PROXY_{limit}"])
    with (
        upstream(take_a_body) as (port, _),
        proxy_before(port, BODY_TIMEOUT_S=60) as proxy,
        ExitStack() as stack,
        proxy.client(source=SLOW) as same,
        proxy.client(source="127.0.0.3") as other,
    ):
        finishes = [stack.enter_context(begun(proxy, path, SLOW)) for _ in range(most)]
        assert_error(same.post(path, content=b" "), 429, "too_many_requests")
        assert other.post(path, content=b" " * 300_000).status_code == 204
        assert [finish().status_code for finish in finishes] == [204] * most
        until(lambda: same.post(path, content=b" ").status_code == 204)


def temporary_files(proxy: Proxy) -> set[str]:
    """Return the kinds of temporary files that nginx has open, by folder: it takes their names away at once."""
    master = (proxy.folder / "nginx.pid").read_text().strip()
    workers = Path(f"/proc/{master}/task/{master}/children").read_text().split()
    links = [os.readlink(link) for pid in workers for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    gone = [link for link in links if link.startswith(str(proxy.folder)) and link.endswith(" (deleted)")]
    return {Path(link).relative_to(proxy.folder).parts[0] for link in gone}


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are not listed in /proc here")
def test_a_large_body_takes_room_and_a_large_answer_to_a_slow_client_takes_none() -> None:
    size = 32 * 2**20

    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(f"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {size}\r\n\r\n".encode())
        connection.sendall(b" " * size)

    with upstream(answer) as (port, _), proxy_before(port) as proxy, proxy.client() as client:
        with begun(proxy, "/predict", SLOW):
            until(lambda: temporary_files(proxy) == {"bodies"})
        until(lambda: temporary_files(proxy) == set())
        with client.stream("GET", "/evaluate/jobs/j1/result") as response:
            read = 0
            for piece in response.iter_raw(2**20):
                read += len(piece)
                assert temporary_files(proxy) == set()
        assert read == size
