"""The shipped nginx configuration, run by the real nginx in front of the real server process."""

from __future__ import annotations

import json
import re
import socket
import threading

import httpx
import pytest
from free_ports import free_port
from proxy_process import Proxy, needs_nginx, proxy_before
from proxy_server import Server, ask, assert_error, parsed, received, upstream
from server_process import until

pytestmark = needs_nginx


def test_ordinary_requests_pass_with_their_id_over_tls(proxy: Proxy) -> None:
    with proxy.client() as client:
        answer = ask(client, "row 4321", **{"x-request-id": "mine:1"})
        assert answer.status_code == 200
        assert round(answer.json()["predictions"][0]["map_probs"]["negative"] * 100_000) == 4321
        assert answer.headers.get_list("x-request-id") == ["mine:1"]
        assert answer.headers["strict-transport-security"].startswith("max-age=")
        made = ask(client, "row", **{"x-request-id": 'not "sane"'}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)
        # The server's own errors stay what they are.
        refused = client.post("/predict", json={"inputs": []})
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "inputs")
        assert client.get("/nope").json()["error"]["code"] == "route_not_found"
        assert [client.get(path).status_code for path in ("/health/ready", "/artifacts", "/changes")] == [200] * 3


def test_prompts_are_neither_logged_nor_left_behind(proxy: Proxy) -> None:
    with proxy.client() as client:
        long, logged = "zebra-secret " * 20_000, proxy.log.count('"path": "/predict"')
        assert client.post("/predict?q=zebra-secret", json={"inputs": [{"text": long}]}).status_code == 422
        until(lambda: proxy.log.count('"path": "/predict"') > logged)
        assert "zebra-secret" not in proxy.log
        left = [path for name in ("bodies", "answers") for path in (proxy.folder / name).rglob("*") if path.is_file()]
        assert left == []


def test_too_many_requests_of_one_address_are_429(server: Server) -> None:
    with proxy_before(server.port, REQUESTS_PER_S=1, BURST=1) as proxy, proxy.client(source="127.0.0.2") as client:
        while (refused := client.get("/health/live")).status_code != 429:
            continue
        assert_error(refused, 429, "too_many_requests")
        with proxy.client() as other:
            assert other.get("/health/live").status_code == 200


def test_a_server_that_is_down_is_503_until_it_is_back() -> None:
    port = free_port()

    def answer_once(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")

    with proxy_before(port) as proxy, proxy.client() as client:
        response = ask(client, **{"x-request-id": "r-7"})
        assert_error(response, 503, "server_unreachable")
        assert response.headers["x-request-id"] == "r-7"
        with socket.create_server(("127.0.0.1", port)) as listener:
            threading.Thread(target=answer_once, args=(listener,)).start()
            assert ask(client).status_code == 204


@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_request_that_broke_off_is_not_sent_again(method: str) -> None:
    broken: list[bytes] = []

    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n")
        # The next request on this connection is read, and the connection closed: as by a server that is killed. nginx
        # would open another connection for it.
        if again := connection.recv(65536):
            broken.append(again)

    with upstream(answer) as (port, heads), proxy_before(port) as proxy, proxy.client() as client:
        assert client.get("/health/live").status_code == 200
        assert_error(client.request(method, "/predict"), 503, "server_unreachable")
        assert (len(heads), len(broken)) == (1, 1)


def test_no_answer_in_time_is_504_and_the_server_is_told() -> None:
    told = threading.Event()

    def answer(connection: socket.socket, head: bytes) -> None:
        while connection.recv(65536):
            continue
        told.set()

    with upstream(answer) as (port, heads), proxy_before(port, ANSWER_TIMEOUT_S=1) as proxy, proxy.client() as client:
        assert_error(client.post("/predict", json={}), 504, "deadline_exceeded")
        told.wait()
        assert len(heads) == 1


def test_a_claimed_address_names_nobody() -> None:
    """The server reads X-Forwarded-For alone."""

    def answer(connection: socket.socket, head: bytes) -> None:
        connection.sendall(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")

    with upstream(answer) as (port, heads), proxy_before(port) as proxy, proxy.client(source="127.0.0.5") as client:
        for claimed in ("203.0.113.9", "203.0.113.9, 127.0.0.1"):
            headers = {"x-forwarded-for": claimed, "x-forwarded-proto": "http"}
            assert client.get("/", headers=headers).status_code == 204
    for head in heads:
        sent = [line.split(b": ", 1) for line in head.lower().split(b"\r\n") if line.startswith(b"x-forwarded-")]
        assert sorted(sent) == [[b"x-forwarded-for", b"127.0.0.5"], [b"x-forwarded-proto", b"https"]]
    assert len(heads) == 2


def test_figures_and_activation_are_for_the_inside(proxy: Proxy) -> None:
    for asked in (
        *("GET /metrics", "GET //metrics", "GET /%6detrics", "GET /a/../metrics", "GET /a/%2e%2e/metrics"),
        *("GET /v1/metrics", "GET /v1%2fmetrics", "POST /v1/artifacts/fake/activate", "POST /artifacts/fake/activate"),
        *("DELETE /artifacts/fake", "POST /artifacts//fake/activate"),
    ):
        # httpx would normalise the path.
        refused = answered(proxy, f"{asked} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
        assert_error(refused, 404, "route_not_found")
    with proxy.client(source="127.0.0.9") as inside:
        assert inside.get("/metrics").status_code == 200
        assert inside.post("/artifacts/fake/activate").status_code == 202
    with proxy.client() as outside:
        # To look is the server's to allow.
        assert outside.get("/artifacts/fake").headers["x-frame-options"]


def answered(proxy: Proxy, sent: bytes) -> httpx.Response:
    with proxy.connected() as connection:
        connection.sendall(sent)
        return parsed(received(connection))


def test_what_is_no_http_is_refused_in_the_one_shape(proxy: Proxy) -> None:
    for sent in (
        b"\x00\xff\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: -5\r\n\r\n",
        b"POST /predict HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\nx: " + b"a" * 40_000 + b"\r\n\r\n",
    ):
        response = answered(proxy, sent)
        assert 400 <= response.status_code < 600
        assert_error(response, response.status_code, "malformed_http")
    plain = httpx.get(f"http://127.0.0.1:{proxy.port}/predict", timeout=None)
    assert (plain.status_code, plain.json()["error"]["code"]) == (400, "malformed_http")


def test_a_client_that_goes_away_leaves_the_servers_queue(busy: Server, proxy: Proxy) -> None:
    body = json.dumps({"inputs": [{"text": f"row {i}"} for i in range(200)]}).encode()
    head = "POST /predict HTTP/1.1\r\nhost: localhost\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with proxy.connected() as connection:
        connection.sendall(head.encode() + body)
        until(lambda: busy.in_flight == 1 and busy.metric("laplora_queue_rows") > 0)
    until(lambda: busy.in_flight == 0 and busy.metric("laplora_queue_rows") == 0)
    busy.release()
    with proxy.client() as client:
        assert ask(client).status_code == 200
