"""Jobs by laplora.client, blocking and asynchronous, against a real server process over a fake predictor."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from server_process import server_process
from test_jobs import rows

from laplora.client import (
    AsyncClient,
    BadRow,
    Client,
    Evaluated,
    JobFailedError,
    RequestRefusedError,
    Retries,
    ServiceUnavailableError,
)
from laplora.errors import DataError


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gate") / "gate"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, gate: Path) -> Iterator[str]:
    root = tmp_path_factory.mktemp("artifacts")
    (root / "fake").mkdir()
    (root / "fake" / "manifest.json").write_text("{}")
    gate.touch()
    server = str(Path(__file__).resolve().parents[3] / "tests" / "service" / "fake_server.py")
    command = [server, "--artifact", "fake", "--artifacts-root", str(root), "--batch-tokens", "40"]
    with server_process(command, {"FAKE_GATE": str(gate)}) as process, process.client() as client:
        yield str(client.base_url)


@pytest.fixture
def held(gate: Path) -> Iterator[Path]:
    gate.unlink()
    yield gate
    gate.touch()


def test_an_iterable_and_a_file_are_evaluated_with_a_bar(address: str, tmp_path: Path) -> None:
    items = rows(120)
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, items)))
    done: list[int] = []
    with Client(address) as client:
        direct = client.evaluate(items)
        first = client.submit_job(iter(items))
        assert (first.rows, first.result) == (120, None)
        assert client.wait_for_job(first, progress=done.append).methods == direct.methods
        assert sum(done) == 120
        second = client.submit_job(path, bins=3, resamples=10, seed=1, artifact="fake")
        found = client.wait_for_job(second.id)
        assert isinstance(found, Evaluated)
        assert len(found.methods["map"].reliability) == 3
        assert {job.id for job in client.jobs()} >= {first.id, second.id}
        seen = client.job(first)
        assert seen.finished
        assert seen.partial is not None
        assert seen.partial["map"]["accuracy"] == pytest.approx(direct.methods["map"].accuracy)


def test_async_gives_the_same(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    items = rows(60)

    async def ask() -> Evaluated:
        async with AsyncClient(address) as client:
            job = await client.submit_job(items, idempotency_key="async")
            again = await client.submit_job(items, idempotency_key="async")
            assert again.id == job.id
            found = await client.wait_for_job(job, progress=True)
            assert (await client.cancel_job(job)).status == "done"
            assert (await client.job(job)).result == found
            await client.remove_job(job)
            assert job.id not in {other.id for other in await client.jobs()}
            with pytest.raises(RequestRefusedError, match="no job"):
                await client.job(job)
            return found

    with Client(address) as client:
        assert asyncio.run(ask()).methods == client.evaluate(items).methods
    assert "60/60" in capsys.readouterr().err


def test_cancelled_and_late_jobs(address: str, held: Path) -> None:
    with Client(address) as client:
        job = client.submit_job(rows(9))
        with pytest.raises(ServiceUnavailableError, match="had not ended") as late:
            client.wait_for_job(job, timeout_s=0.01)
        assert late.value.code == "timeout"
        with pytest.raises(RequestRefusedError, match="cancel it first") as running:
            client.remove_job(job)
        assert running.value.code == "job_not_ended"
        assert not client.job(job).finished
        assert client.cancel_job(job).status == "cancelled"
        with pytest.raises(JobFailedError) as cancelled:
            client.wait_for_job(job)
        assert cancelled.value.code == "cancelled"
        client.remove_job(job)
        for lost in (client.remove_job, client.cancel_job):
            with pytest.raises(RequestRefusedError, match="no job"):
                lost(job)


async def _remove_running(address: str, job: str) -> None:
    async with AsyncClient(address) as client:
        await client.remove_job(job)


def test_a_running_job_is_not_removed_by_the_async_client_either(address: str, held: Path) -> None:
    with Client(address) as client:
        job = client.submit_job(rows(9))
        with pytest.raises(RequestRefusedError, match="cancel it first"):
            asyncio.run(_remove_running(address, job.id))
        client.cancel_job(job)


def test_rows_without_an_answer_are_not_passed_over_in_silence() -> None:
    metrics = {"accuracy": 1.0, "nll": 0.1, "ece": 0.0}
    result = {"artifact": JOB["artifact"], "rows": 1, "methods": {}}
    done = {**JOB, "status": "done", "error": None, "rows_done": 2, "rows_bad": 1, "result": result}
    done |= {"partial": {"map": metrics}, "bad_rows": [{"line": 2, "code": "unscorable_input"}]}

    def handler(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=done)

    async def later(request: httpx.Request) -> httpx.Response:
        return handler(request)

    async def ask() -> Evaluated:
        async with AsyncClient("http://server", transport=httpx.MockTransport(later)) as client:
            return await client.wait_for_job("j")

    with Client("http://server", transport=httpx.MockTransport(handler)) as client:
        assert client.job("j").bad_rows == (BadRow(line=2, code="unscorable_input"),)
        with pytest.warns(UserWarning, match="1 of 2 rows of job j could not be scored"):
            assert client.wait_for_job("j").rows == 1
    with pytest.warns(UserWarning, match="1 of 2 rows of job j could not be scored"):
        assert asyncio.run(ask()).rows == 1


def test_what_cannot_be_a_job(address: str, tmp_path: Path) -> None:
    with Client(address) as client:
        with pytest.raises(RequestRefusedError) as refused:
            client.submit_job([*rows(2), {"text": "a", "label": "good"}])
        assert refused.value.field == "lines.3.label"
        with pytest.raises(DataError, match="no inputs"):
            client.submit_job([])
        with pytest.raises(DataError, match="input 1 is int"):
            client.submit_job([*rows(1), 3])  # type: ignore[list-item]
        with pytest.raises(ValueError, match="JSON"):
            client.submit_job([{"text": float("nan"), "label": "positive"}])
        with pytest.raises(FileNotFoundError):
            client.submit_job(tmp_path / "none.jsonl")


JOB: dict[str, Any] = {
    "id": "j",
    "status": "failed",
    "artifact": {"name": "n", "digest": "d", "base_model": "b", "quantization": "q"},
    "rows": 2,
    "rows_done": 1,
    "error": {"code": "unscorable_input", "message": "no finite answer", "field": "lines.2"},
}


def test_another_try_sends_the_same_upload_under_the_same_key() -> None:
    sent: list[tuple[bytes, str]] = []

    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=JOB)
        sent.append((request.read(), request.headers["idempotency-key"]))
        if len(sent) % 3:
            return httpx.Response(503, json={"error": {"code": "not_ready", "message": "m"}, "request_id": "r"})
        return httpx.Response(202, json=JOB | {"status": "queued"})

    async def later(request: httpx.Request) -> httpx.Response:
        await request.aread()
        return handler(request)

    quick = Retries(tries=3, first_s=0.01, longest_s=0.02)

    async def ask() -> None:
        async with AsyncClient("http://server", transport=httpx.MockTransport(later), retries=quick) as client:
            await client.wait_for_job(await client.submit_job(iter(rows(2))))

    def ask_blocking() -> None:
        with Client("http://server", transport=httpx.MockTransport(handler), retries=quick) as client:
            client.wait_for_job(client.submit_job(iter(rows(2))))

    asked: list[Callable[[], Any]] = [ask_blocking, lambda: asyncio.run(ask())]
    for one in asked:
        sent.clear()
        with pytest.raises(JobFailedError, match="no finite answer") as failed:
            one()
        assert (failed.value.code, failed.value.field) == ("unscorable_input", "lines.2")
        assert len(sent) == 3
        assert len(set(sent)) == 1
        assert len(sent[0][0].splitlines()) == 2


def test_no_torch_is_loaded() -> None:
    code = "import sys, laplora.client; sys.exit('torch' in sys.modules or 'service' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
