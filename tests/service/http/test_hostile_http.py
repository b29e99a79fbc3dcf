"""Hostile bytes on a real socket, each with the status it gets: framing, headers, methods and paths."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from server_process import Process, fake_artifacts, fake_server
from serving import on_uvicorn, serve

from service.http.headers import EVERY_ANSWER
from service.http.schemas.errors import ErrorResponse

SECRET = b"zebra-secret"
BODY = b'{"inputs": [{"text": "zebra-secret"}]}'
HOST = b"Host: localhost\r\nConnection: close\r\n"


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    root = fake_artifacts(tmp_path_factory.mktemp("served"))
    with fake_server(root) as process, process.client() as client:
        yield process
        # Whatever was sent before: it goes on, nothing crashed, and the log holds nothing of it.
        assert client.post("/predict", json={"inputs": [{"text": "a"}]}).status_code == 200
        assert '"event": "crash"' not in process.log
        assert "Traceback" not in process.log
        assert SECRET.decode() not in process.log


def send(process: Process, raw: bytes) -> bytes:
    """Return everything that the server answers until it closes the connection."""
    address = urlsplit(str(process.event("listening")["address"]))
    with socket.create_connection((address.hostname, address.port)) as connection:
        connection.sendall(raw)
        answer = b""
        try:
            while piece := connection.recv(65536):
                answer += piece
        except ConnectionResetError:
            # It closed with our bytes unread; what it said before that is what counts.
            pass
        return answer


def post(extra: bytes = b"", *, path: bytes = b"/predict", body: bytes = BODY, length: bool = True) -> bytes:
    sized = b"Content-Length: %d\r\n" % len(body) if length else b""
    head = b"POST " + path + b" HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n" + sized
    return head + extra + b"\r\n" + body


def check(answer: bytes, status: int, code: str | None) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status), answer[:300]
    assert SECRET not in answer
    headers = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:])
    assert headers["x-request-id"]
    assert {name.lower(): value.lower() for name, value in EVERY_ANSWER.items()}.items() <= headers.items()
    assert "server" not in headers
    if code is not None:
        found = ErrorResponse.model_validate_json(body)
        assert (found.error.code, found.request_id) == (code, headers["x-request-id"])


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in (*pieces, b""))


FRAMING: dict[str, tuple[bytes, int, str | None]] = {
    "500 headers": (post(b"".join(b"x-%d: zebra-secret\r\n" % i for i in range(500))), 200, None),
    "20,000 headers": (post(b"".join(b"x-%d: zebra-secret\r\n" % i for i in range(20_000))), 400, "malformed_http"),
    "header of 200 kB": (post(b"x: " + SECRET * 20_000 + b"\r\n"), 400, "malformed_http"),
    "length too short": (post(b"Content-Length: 5\r\n", length=False), 422, "invalid_json"),
    "no length and no body": (post(length=False, body=b""), 422, "invalid_json"),
    "length above the limit": (post(b"Content-Length: 99999999\r\n", length=False), 413, "body_too_large"),
    "two lengths": (post(b"Content-Length: 5\r\n"), 400, "malformed_http"),
    "negative length": (post(b"Content-Length: -5\r\n", length=False), 400, "malformed_http"),
    "length with a sign": (post(b"Content-Length: +38\r\n", length=False), 400, "malformed_http"),
    "length of 30 digits": (post(b"Content-Length: " + b"9" * 30 + b"\r\n", length=False), 400, "malformed_http"),
    "chunks": (post(b"Transfer-Encoding: chunked\r\n", length=False, body=chunked(BODY[:7], BODY[7:])), 200, None),
    "broken chunks": (post(b"Transfer-Encoding: chunked\r\n", length=False, body=b"zebra\r\n"), 400, "malformed_http"),
    "unknown transfer encoding": (post(b"Transfer-Encoding: gzip\r\n", length=False), 400, "malformed_http"),
    "gzip that is none": (post(b"Content-Encoding: gzip\r\n"), 422, "invalid_request"),
    "no host": (b"GET /health/live HTTP/1.1\r\nConnection: close\r\n\r\n", 400, "malformed_http"),
    "two hosts": (b"GET /health/live HTTP/1.1\r\nHost: zebra-secret\r\n" + HOST + b"\r\n", 400, "malformed_http"),
    "space in the path": (b"GET /zebra-secret x HTTP/1.1\r\n" + HOST + b"\r\n", 400, "malformed_http"),
    "raw bytes in the path": (b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n", 400, "malformed_http"),
    "TLS": (bytes.fromhex("16030100a5010000a10303"), 400, "malformed_http"),
    "raw bytes in a header": (post(b"X: \xff\xfe\x80\r\n"), 200, None),
    "raw bytes in the request id": (post(b"X-Request-ID: \xff\xfe\r\n"), 200, None),
    "request id too long": (post(b"X-Request-ID: " + SECRET * 20 + b"\r\n"), 200, None),
    "another host": (b"GET / HTTP/1.1\r\nConnection: close\r\nHost: zebra-secret\r\n\r\n", 421, "unknown_host"),
    "websocket": (
        b"GET /predict HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade, close\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        405,
        "method_not_allowed",
    ),
    "another server's address": (b"GET http://zebra-secret/ HTTP/1.1\r\n" + HOST + b"\r\n", 404, "route_not_found"),
    "CONNECT": (b"CONNECT zebra-secret:80 HTTP/1.1\r\n" + HOST + b"\r\n", 404, "route_not_found"),
    "OPTIONS of everything": (b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n", 404, "route_not_found"),
}


@pytest.mark.parametrize("name", FRAMING)
def test_framing_and_headers(process: Process, name: str) -> None:
    raw, status, code = FRAMING[name]
    check(send(process, raw), status, code)


@pytest.mark.anyio
async def test_a_length_that_is_too_long_is_waited_for_until_the_deadline() -> None:
    async with serve(request_timeout_s=0.2) as served, on_uvicorn(served.app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(post(b"Content-Length: 4000\r\n", length=False))
        check(await reader.read(), 504, "deadline_exceeded")
        writer.close()


@pytest.mark.parametrize("path", ["/predict", "/health/live", "/docs/assets/swagger-ui.css"])
def test_other_methods_are_405_with_the_right_one(process: Process, path: str) -> None:
    for method in ("OPTIONS", "TRACE", "PUT", "PATCH", "DELETE", "BREW", "post"):
        raw = f"{method} {path} HTTP/1.1\r\n".encode() + HOST + b"Cookie: zebra-secret\r\n\r\n"
        answer = send(process, raw)
        check(answer, 405, "method_not_allowed")
        if not path.startswith("/docs"):
            assert (b"\r\nallow: POST\r\n" in answer) == (path == "/predict")


_NOWHERE = b"//predict /predict/ /zebra-secret/../predict /%2e%2e/predict /predict%00 /predict%2f"
_NOWHERE += b" /predict;zebra-secret=1 /predict#zebra-secret /PREDICT /%ff%fe /%ed%a0%80"
PATHS = {
    **dict.fromkeys((*_NOWHERE.split(), b"/" + SECRET * 1000), 404),
    # These name the endpoint: percent-encoding of letters means the letters, and it takes no parameters.
    b"/%70redict": 200,
    b"/predict?inputs=zebra-secret&inputs=%ff&%00": 200,
}


@pytest.mark.parametrize("path", PATHS)
def test_path_tricks(process: Process, path: bytes) -> None:
    check(send(process, post(path=path)), PATHS[path], "route_not_found" if PATHS[path] == 404 else None)


@pytest.mark.parametrize("name", [b"..%2f..%2fapp.py", b"..%5c..%5capp.py", b"%2e%2e/app.py", b"%00", b"a" * 5000, b""])
def test_no_path_leaves_the_docs_assets_and_head_has_no_body(process: Process, name: bytes) -> None:
    for method in (b"GET", b"HEAD"):
        answer = send(process, method + b" /docs/assets/" + name + b" HTTP/1.1\r\n" + HOST + b"\r\n")
        check(answer, 404, "route_not_found" if method == b"GET" else None)
    assert answer.endswith(b"\r\n\r\n")
