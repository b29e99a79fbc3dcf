"""A new server takes an old one's place under load: readiness goes first, then new requests, and no request fails."""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from balancer import LOOK_EVERY_S, balancer
from server_process import Process, Start, is_ready, predict, until

CLIENTS = 6


def ready_address(process: Process) -> str:
    with process.client() as client:
        return str(client.base_url).rstrip("/")


def rollout(old: Process, new: Process) -> Counter[tuple[str, int | str]]:
    """Return what clients were answered, by server, while the old one got SIGTERM; both are ready when this begins."""
    addresses = {ready_address(old): "old", ready_address(new): "new"}

    async def run() -> Counter[tuple[str, int | str]]:
        answers: Counter[tuple[str, int | str]] = Counter()
        over = asyncio.Event()
        async with balancer(*addresses) as balance:

            async def client() -> None:
                while not over.is_set():
                    address, answer = await balance.post("/predict", {"inputs": [{"text": "fine 7"}]})
                    answers[addresses[address], answer] += 1
                    await asyncio.sleep(0.01)

            clients = [asyncio.create_task(client()) for _ in range(CLIENTS)]
            while not answers["old", 200] or not answers["new", 200]:
                await asyncio.sleep(0.01)
            old.popen.terminate()
            await asyncio.to_thread(old.left)
            before = answers["new", 200]
            while answers["new", 200] < before + CLIENTS:
                await asyncio.sleep(0.01)
            over.set()
            await asyncio.gather(*clients)
        return answers

    return asyncio.run(run())


def test_a_rollout_fails_no_request(start: Start) -> None:
    """The delay is three of the balancer's looks: one may be under way as the signal comes, and looks may be late."""
    old, new = start("--drain-delay-s", f"{3 * LOOK_EVERY_S}"), start()
    answers = rollout(old, new)
    assert {answer for _, answer in answers} == {200}, answers
    assert old.popen.returncode == 0
    assert old.event("leaving")["delay_s"] == 3 * LOOK_EVERY_S
    assert old.event("draining")


def test_readiness_fails_at_once_while_everything_is_answered(start: Start) -> None:
    process = start("--drain-delay-s", "3600")
    with process.client() as client:
        process.popen.terminate()
        until(lambda: not is_ready(client))
        for path in ("/health/ready", "/v2/health/ready"):
            refused = client.get(path)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
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
    process = start("--drain-delay-s", "1", FAKE_GATE=str(gate))
    with process.client() as client, ThreadPoolExecutor() as pool:
        gate.unlink()
        process.popen.terminate()
        process.event("leaving")
        late = pool.submit(predict, client)
        process.event("draining")
        gate.touch()
        assert late.result().status_code == 200
        assert process.left() == 0


def test_ctrl_c_waits_for_nobody_to_notice(start: Start) -> None:
    process = start("--drain-delay-s", "3600")
    with process.client():
        process.popen.send_signal(signal.SIGINT)
        assert process.left() == 0
    assert "leaving" not in process.log


def test_a_server_that_was_not_ready_yet_leaves_at_once(start: Start, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    process = start("--drain-delay-s", "3600", FAKE_GATE=str(gate))
    address = process.event("listening")["address"]
    with httpx.Client(base_url=str(address), timeout=None) as client:
        assert not is_ready(client)
    process.popen.terminate()
    assert process.left() == 0
