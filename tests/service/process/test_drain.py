"""SIGTERM under a full queue, with the real process: what was accepted is answered, the rest refused, the exit clean.

The queue is full while a gate is shut; with the gate shut for good only the drain's end can answer.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
from server_process import Process, Start, half_a_request, in_flight, metric, predict, until
from serving import code

QUEUE_ROWS = 6
BODY = json.dumps({"inputs": [{"text": "a"}]})
JSON = {"content-type": "application/json"}


@dataclass
class FullServer:
    """A server with one row on the device, a full queue behind it, and a kept connection that was used once."""

    process: Process
    client: httpx.Client
    accepted: list[Future[httpx.Response]]
    kept: http.client.HTTPConnection

    def ask_on_kept(self) -> tuple[int, str | None, str]:
        """Return the status, the Connection header and the error code of one more request on the kept connection."""
        self.kept.request("POST", "/predict", BODY, JSON)
        answer = self.kept.getresponse()
        code = json.loads(answer.read()).get("error", {}).get("code", "")
        return answer.status, answer.getheader("connection"), code


@contextmanager
def full_server(start: Start, gate: Path, *flags: str) -> Iterator[FullServer]:
    limits = ("--max-queue-rows", str(QUEUE_ROWS), "--max-inputs", "2", "--batch-tokens", "1", "--client-share", "1")
    process = start(*limits, *flags, FAKE_GATE=str(gate))
    with process.client() as client, ThreadPoolExecutor(QUEUE_ROWS + 1) as pool:
        gate.unlink()
        kept = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
        try:
            accepted = [pool.submit(predict, client)]
            in_flight(client, 1)
            until(lambda: metric(client, "laplora_queue_rows") == 0)
            accepted += [pool.submit(predict, client) for _ in range(QUEUE_ROWS)]
            until(lambda: metric(client, "laplora_queue_rows") == QUEUE_ROWS)
            server = FullServer(process, client, accepted, kept)
            assert server.ask_on_kept() == (429, None, "queue_full")
            yield server
        finally:
            kept.close()
            # Whoever still waits gets an answer, or a closed connection.
            process.popen.kill()


def test_what_was_accepted_is_answered_and_the_rest_is_refused(start: Start, gate: Path) -> None:
    with full_server(start, gate, "--stall-s", "0.05", "--hang-s", "3600") as server:
        until(lambda: "device_stalled" in server.client.get("/health/ready").text)
        assert server.client.get("/health/live").status_code == 200, "its queue is full, and its device stalls"
        server.process.popen.terminate()
        server.process.event("draining")
        assert code(server.client.get("/health/ready")) == (503, "draining")
        assert server.client.get("/health/live").status_code == 200
        # The connection that was kept open ends with this answer, so that its client goes elsewhere.
        assert server.ask_on_kept() == (503, "close", "draining")
        assert server.kept.sock is None
        # The gate opens once the last word on new requests is spoken.
        gate.touch()
        answers = [answer.result() for answer in server.accepted]
        assert [answer.status_code for answer in answers] == [200] * (QUEUE_ROWS + 1)
        assert {answer.headers["connection"] for answer in answers} == {"close"}
        assert server.process.left() == 0
        assert server.process.event("draining")["in_flight"] == QUEUE_ROWS + 1
        assert server.process.event("stopped")


def test_the_drains_end_answers_whatever_is_left(start: Start, gate: Path) -> None:
    with full_server(start, gate, "--drain-s", "0.5", "--leave-s", "2") as server:
        server.process.popen.terminate()
        # The gate stays shut: the device never comes back from its batch.
        answers = [answer.result() for answer in server.accepted]
        assert [answer.status_code for answer in answers] == [503] * (QUEUE_ROWS + 1)
        for answer in answers:
            assert answer.json()["error"]["code"] == "draining"
            assert "retry-after" in answer.headers
            assert answer.headers["connection"] == "close"
        assert server.process.left() == 0
        assert "Traceback" not in server.process.log


def test_a_disk_that_does_not_answer_holds_up_no_exit(start: Start, tmp_path: Path) -> None:
    process = start("--drain-s", "0.1", "--leave-s", "1")
    (tmp_path / "artifacts" / "stuck").mkdir()
    (tmp_path / "artifacts" / "stuck" / "manifest.json").write_text("{}")
    with process.client() as client, ThreadPoolExecutor(1) as asking:
        listing = asking.submit(client.get, "/artifacts")
        with httpx.Client(base_url=client.base_url, timeout=None) as other:
            in_flight(other, 1)
        process.popen.terminate()
        assert process.left() == 0
        with suppress(httpx.TransportError):
            assert listing.result().status_code >= 500


def test_a_body_that_is_not_all_there_at_the_drains_end_is_a_503(start: Start) -> None:
    process = start("--drain-s", "0.1", "--leave-s", "1")
    with (
        process.client() as client,
        half_a_request(client) as request,
        half_a_request(client, "/evaluate/jobs", "application/jsonl") as upload,
    ):
        in_flight(client, 2)
        process.popen.terminate()
        for slow in (request, upload):
            answer = slow.getresponse()
            body = json.loads(answer.read())
            assert (answer.status, body["error"]["code"], body["request_id"]) == (503, "draining", "half")
            assert answer.getheader("x-request-id") == "half"
            assert answer.getheader("retry-after")
    assert process.left() == 0
    assert "Traceback" not in process.log
    logged = [json.loads(line) for line in process.lines if '"request_id": "half"' in line]
    assert [(line["event"], line["status"], line["code"]) for line in logged] == [("request", 503, "draining")] * 2
