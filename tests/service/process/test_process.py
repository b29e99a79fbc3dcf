"""A real process on a real socket: start, readiness, signals, and clients that misbehave at the socket."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from server_process import Process, fake_artifacts, server_process

from service.exit_status import ExitStatus

FAKE_SERVER = Path(__file__).resolve().parents[1] / "fake_server.py"


Start = Callable[..., Process]


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    return fake_artifacts(tmp_path)


@pytest.fixture
def start(artifacts: Path) -> Iterator[Start]:
    with ExitStack() as stack:

        def run(*flags: str, **environment: str) -> Process:
            command = [str(FAKE_SERVER), "--artifact", "fake", "--artifacts-root", str(artifacts), *flags]
            return stack.enter_context(server_process(command, environment))

        yield run


def in_flight(client: httpx.Client, count: int) -> None:
    """Wait until so many rows wait for the device or are on it."""
    while f"laplora_requests_in_flight {count + 1:.1f}" not in client.get("/metrics").text:
        time.sleep(0.01)


def predict(client: httpx.Client, text: str = "a") -> httpx.Response:
    return client.post("/predict", json={"inputs": [{"text": text}]})


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves_and_leaves_cleanly_when_idle(start: Start, number: signal.Signals) -> None:
    process = start()
    with process.client() as client:
        assert predict(client).status_code == 200
        process.popen.send_signal(number)
        assert process.left() == 0
    assert process.event("stopped")
    assert "Traceback" not in process.log


def test_sigterm_answers_what_is_in_flight_and_refuses_the_rest(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    process = start(FAKE_GATE=str(gate))
    with process.client() as client, ThreadPoolExecutor() as pool:
        gate.unlink()
        running = pool.submit(predict, client)
        in_flight(client, 1)
        process.popen.terminate()
        process.event("draining")
        refused, ready = predict(client), client.get("/health/ready")
        gate.touch()
        assert running.result().status_code == 200
        assert process.left() == 0
    for response in (refused, ready):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "draining")
        assert "retry-after" in response.headers


def test_drain_ends_in_its_stated_time_and_still_answers(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    process = start("--drain-s", "0.3", FAKE_GATE=str(gate))
    with process.client() as client, ThreadPoolExecutor() as pool:
        gate.unlink()
        running = pool.submit(predict, client)
        in_flight(client, 1)
        process.popen.terminate()
        # The gate never opens: only the drain's end can answer.
        assert running.result().json()["error"]["code"] == "draining"
        assert process.left() == 0


def test_failed_artifact_ends_the_process_and_says_why(start: Start) -> None:
    process = start(FAKE_BROKEN="1")
    assert process.left() == 1
    while "stopped" not in process.log:
        time.sleep(0.01)
    assert "recorded 0.5, got 0.7" in process.log


def test_missing_artifact_is_said_at_once(start: Start) -> None:
    process = start("--artifact", "nobody")
    assert process.left() == 2
    while "nobody" not in process.log:
        time.sleep(0.01)
    assert "--artifact" in process.log


def test_taken_port_ends_the_process(start: Start) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        process = start("--port", str(taken.getsockname()[1]))
        assert process.left() == ExitStatus.START_FAILED
        while "--port takes another one" not in process.log:
            time.sleep(0.01)
        assert "address already in use" in process.log


def test_closed_connection_frees_its_queued_rows(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    gate.touch()
    process = start(FAKE_GATE=str(gate))
    with process.client() as client, ThreadPoolExecutor() as pool:
        gate.unlink()
        running = pool.submit(predict, client)
        in_flight(client, 1)
        address = urlsplit(str(client.base_url))
        body = b'{"inputs": [{"text": "b"}]}'
        with socket.create_connection((address.hostname, address.port)) as connection:
            head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
            connection.sendall(head.encode() + b"\r\n\r\n" + body)
            while "laplora_queue_rows 1.0" not in client.get("/metrics").text:
                time.sleep(0.01)
        while "laplora_queue_rows 0.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        gate.touch()
        assert running.result().status_code == 200


def test_large_bodies_are_refused_with_an_answer_not_a_reset(start: Start) -> None:
    process = start("--max-body-bytes", "65536")
    headers = {"content-type": "application/json"}
    with process.client() as client:
        for size in (65_537, 1_000_000):
            announced = client.post("/predict", content=b" " * size, headers=headers)
            chunked = client.post("/predict", content=iter([b" " * 50_000] * (size // 50_000 + 1)), headers=headers)
            for response in (announced, chunked):
                assert response.status_code == 413
                assert response.json()["error"]["limit"] == 65536
            assert announced.json()["error"]["got"] == size
        assert predict(client).status_code == 200


def test_client_that_asks_first_is_told_before_it_sends(start: Start) -> None:
    process = start("--max-body-bytes", "2048")
    with process.client() as client:
        address = urlsplit(str(client.base_url))
        with socket.create_connection((address.hostname, address.port)) as connection:
            connection.sendall(
                b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: 4096\r\nexpect: 100-continue\r\n\r\n"
            )
            assert b"413" in connection.recv(4096).split(b"\r\n")[0]


def test_garbage_on_the_socket_harms_nobody(start: Start) -> None:
    process = start()
    with process.client() as client:
        address = urlsplit(str(client.base_url))
        for garbage in (
            b"\x00\xff\xfe\r\n\r\n",
            b"GET /\xff HTTP/9.9\r\n\r\n",
            b"POST /predict HTTP/1.1\r\n\r\n",
            b"\r\n",
        ):
            with socket.create_connection((address.hostname, address.port)) as connection:
                connection.sendall(garbage)
                connection.shutdown(socket.SHUT_WR)
                assert b" 500 " not in connection.recv(4096)
        assert predict(client).status_code == 200


def test_many_clients_at_once_each_get_their_own_answer(start: Start) -> None:
    process = start("--batch-tokens", "64")
    with process.client() as client, ThreadPoolExecutor(16) as pool:
        tokens = range(1000, 1200)
        answers = list(pool.map(lambda token: predict(client, f"row {token}"), tokens))
    got = [round(a.json()["predictions"][0]["map_probs"]["negative"] * 100_000) for a in answers]
    assert got == list(tokens)
