"""A new server takes an old one's place under load: readiness goes first, then new requests, and no request fails."""

from __future__ import annotations

import asyncio
import itertools
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
from limits import longer_and_longer
from server_process import Process, Start, is_ready, predict, until
from serving import code

CLIENTS = 6


def test_a_rollout_fails_no_request(start: Start) -> None:
    """Behind a balancer that keeps its connections, never retries, and sends to who was ready at its last look."""
    for delay_s in longer_and_longer(1.0):
        old = start("--drain-delay-s", str(delay_s))
        answers, in_time = rollout(old, start(), delay_s)
        assert old.popen.returncode == 0
        assert old.event("leaving")["delay_s"] == delay_s
        assert old.event("draining")
        if in_time:
            assert {answer for _, answer in answers} == {200}, answers
            return


def rollout(old: Process, new: Process, delay_s: float) -> tuple[Counter[tuple[str, int | str]], bool]:
    """Return the answers by server and status, and whether the balancer had turned away before the old one's drain."""
    with ExitStack() as stack:
        both = [stack.enter_context(process.client()) for process in (old, new)]
        names = {str(client.base_url).rstrip("/"): name for client, name in zip(both, ("old", "new"), strict=True)}
    ready, turns = list(names), itertools.count()
    answers: Counter[tuple[str, int | str]] = Counter()
    asked: Counter[str] = Counter()

    async def run() -> bool:
        over = asyncio.Event()
        async with httpx.AsyncClient(timeout=None) as http:

            async def status(method: str, address: str, path: str, **body: object) -> int | str:
                try:
                    return (await http.request(method, f"{address}{path}", **body)).status_code  # type: ignore[arg-type]
                except httpx.TransportError as error:
                    return type(error).__name__

            async def look() -> None:
                while True:
                    await asyncio.sleep(0.1)
                    ready[:] = [address for address in names if await status("GET", address, "/health/ready") == 200]

            async def ask() -> None:
                while not over.is_set():
                    address = ready[next(turns) % len(ready)]
                    asked[names[address]] += 1
                    answer = await status("POST", address, "/predict", json={"inputs": [{"text": "fine 7"}]})
                    asked[names[address]] -= 1
                    answers[names[address], answer] += 1
                    await asyncio.sleep(0.01)

            async def answered(name: str, more: int) -> None:
                before = answers[name, 200]
                while answers[name, 200] < before + more:
                    await asyncio.sleep(0.01)

            looking = asyncio.create_task(look())
            clients = [asyncio.create_task(ask()) for _ in range(CLIENTS)]
            await answered("old", 1)
            await answered("new", 1)
            drains_at = time.monotonic() + delay_s
            old.popen.terminate()
            while len(ready) > 1 or asked["old"]:
                await asyncio.sleep(0.01)
            in_time = time.monotonic() < drains_at
            await asyncio.to_thread(old.left)
            await answered("new", CLIENTS)
            over.set()
            await asyncio.gather(*clients)
            looking.cancel()
            return in_time

    in_time = asyncio.run(run())
    return answers, in_time


def test_readiness_fails_at_once_while_everything_is_answered(start: Start) -> None:
    process = start("--drain-delay-s", "3600")
    with process.client() as client:
        process.popen.terminate()
        until(lambda: not is_ready(client))
        refused = client.get("/health/ready")
        assert code(refused) == (503, "draining")
        assert "retry-after" in refused.headers
        process.event("leaving")
        for _ in range(3):
            answer = predict(client)
            # A kept connection would bring the next request here as well.
            assert (answer.status_code, answer.headers["connection"]) == (200, "close")
        lines = client.get("/metrics").text.splitlines()
        assert {"laplora_ready 0.0", "laplora_draining 0.0"} <= set(lines)
        # Who cannot wait sends a second signal.
        process.popen.send_signal(signal.SIGTERM)
        assert process.left() == 0


def test_what_came_in_the_delay_is_answered_in_the_drain(start: Start, gate: Path) -> None:
    for delay_s in longer_and_longer(1.0):
        process = start("--drain-delay-s", str(delay_s), FAKE_GATE=str(gate))
        with process.client() as client, ThreadPoolExecutor() as pool:
            gate.unlink()
            process.popen.terminate()
            process.event("leaving")
            late = pool.submit(predict, client)
            came = process.event("draining")["in_flight"] == 1
            gate.touch()
            assert not came or late.result().status_code == 200
            assert process.left() == 0
        if came:
            return


def test_ctrl_c_and_a_server_that_was_not_ready_yet_wait_for_nobody_to_notice(start: Start, tmp_path: Path) -> None:
    ready, waiting = (
        start("--drain-delay-s", "3600"),
        start("--drain-delay-s", "3600", FAKE_GATE=str(tmp_path / "gate")),
    )
    with ready.client():
        ready.popen.send_signal(signal.SIGINT)
        assert ready.left() == 0
    assert "leaving" not in ready.log
    with httpx.Client(base_url=str(waiting.event("listening")["address"]), timeout=None) as client:
        assert not is_ready(client)
    waiting.popen.terminate()
    assert waiting.left() == 0
