"""The client to await; the same methods as ``laplora.client.blocking.Client``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from laplora.client import bodies, jobs
from laplora.client.answers import Answers, Artifact, Evaluated, FeedbackResult, ServedArtifact
from laplora.client.failures import RequestRefusedError, ServiceFailedError, ServiceUnavailableError, failure_of
from laplora.client.jobs import Job, JobInputs
from laplora.client.progress import Advance, advancing
from laplora.client.retries import Retries, unreachable


class AsyncClient:
    """Talks to one service, on one event loop. An asynchronous context manager; arguments as of ``Client``."""

    def __init__(
        self,
        address: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 150.0,
        retries: Retries | None = None,
        batch_size: int = 64,
        in_flight: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._http = httpx.AsyncClient(base_url=address, headers=headers, timeout=timeout_s, transport=transport)
        self._retries = retries or Retries()
        self._batch_size, self._in_flight = batch_size, in_flight

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self,
        inputs: bodies.Inputs,
        *,
        mode: bodies.Mode | None = None,
        predictive: str | None = None,
        target_risk: float | None = None,
        covariance: bool = False,
        truncate: bool = False,
        order_average: bool = False,
        timeout_s: float | None = None,
        artifact: str | None = None,
        progress: bool | Advance = False,
    ) -> Answers:
        """Return an answer per input, in order; arguments and errors as of ``Client.predict``.

        Cancelling it closes the requests in flight, and the service drops what of them still waits.
        """
        options = bodies.predict_options(mode, predictive, target_risk, covariance, truncate, order_average, timeout_s)
        batches = bodies.in_batches(inputs, self._batch_size)
        room = asyncio.Semaphore(self._in_flight)
        with advancing(sum(map(len, batches)), progress) as advance:

            async def one(batch: Sequence[Mapping[str, Any]]) -> list[tuple[httpx.Response, int]]:
                async with room:
                    return await self._batch(batch, artifact, options, advance)

            tasks = [asyncio.ensure_future(one(batch)) for batch in batches]
            try:
                found = await asyncio.gather(*tasks)
            finally:  # after a failure or a cancellation nothing more is sent
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        return bodies.answers_of([part for parts in found for part in parts])

    async def _batch(
        self,
        inputs: Sequence[Mapping[str, Any]],
        artifact: str | None,
        options: Mapping[str, Any],
        advance: Advance,
    ) -> list[tuple[httpx.Response, int]]:
        try:
            response = await self._send("POST", "/predict", bodies.body_of(inputs, artifact, options))
        except RequestRefusedError as failure:
            if not bodies.can_be_split(failure, len(inputs)):
                raise
            half = len(inputs) // 2
            first = await self._batch(inputs[:half], artifact, options, advance)
            return first + await self._batch(inputs[half:], artifact, options, advance)
        advance(len(inputs))
        return [(response, len(inputs))]

    async def feedback(self, labels: bodies.Labels) -> tuple[FeedbackResult, ...]:
        """Tell the true labels of earlier predictions; arguments, result and errors as of ``Client.feedback``."""
        found: list[FeedbackResult] = []
        for batch in bodies.feedback_batches(labels, self._batch_size):
            found += await self._feed(batch)
        return tuple(found)

    async def _feed(self, items: Sequence[Mapping[str, str]]) -> tuple[FeedbackResult, ...]:
        try:
            return bodies.fed_of(await self._send("POST", "/feedback", {"items": items}), len(items))
        except RequestRefusedError as failure:
            if not bodies.can_be_split(failure, len(items)):
                raise
            half = len(items) // 2
            return await self._feed(items[:half]) + await self._feed(items[half:])

    async def evaluate(
        self,
        inputs: bodies.Inputs,
        *,
        truncate: bool = False,
        order_average: bool = False,
        timeout_s: float | None = None,
        artifact: str | None = None,
    ) -> Evaluated:
        """Return the metrics of every predictive; as ``Client.evaluate``."""
        options = bodies.predict_options(None, None, None, False, truncate, order_average, timeout_s)
        (rows,) = bodies.in_batches(inputs, 1 << 62)
        return bodies.evaluated_of(await self._send("POST", "/evaluate", bodies.body_of(rows, artifact, options)))

    async def submit_job(
        self,
        inputs: JobInputs,
        *,
        truncate: bool = False,
        order_average: bool = False,
        bins: int | None = None,
        resamples: int | None = None,
        seed: int | None = None,
        artifact: str | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Return the job of an upload; as ``Client.submit_job``."""
        where = jobs.query_of(
            truncate=truncate,
            order_average=order_average,
            bins=bins,
            resamples=resamples,
            seed=seed,
            artifact=artifact,
        )
        headers = jobs.upload_headers(idempotency_key)
        with jobs.upload_file(inputs) as path:
            return bodies.job_of(await self._send("POST", where, upload=path, headers=headers))

    async def job(self, job: Job | str) -> Job:
        """Return how far a job is, by itself or its id."""
        return bodies.job_of(await self._send("GET", jobs.path_of(job)))

    async def jobs(self) -> tuple[Job, ...]:
        """Return one's jobs, the newest first, without results."""
        return bodies.jobs_of(await self._send("GET", jobs.query_of()))

    async def cancel_job(self, job: Job | str) -> Job:
        """Cancel a job, and return it; as ``Client.cancel_job``."""
        return bodies.job_of(await self._send("POST", jobs.cancel_path(job)))

    async def remove_job(self, job: Job | str) -> None:
        """Remove a job that has ended, with its result; as ``Client.remove_job``."""
        jobs.check_ended(await self.job(job))
        await self._send("DELETE", jobs.path_of(job))

    async def wait_for_job(
        self, job: Job | str, *, timeout_s: float | None = None, progress: bool | Advance = False
    ) -> Evaluated:
        """Return a job's metrics, once it has ended; as ``Client.wait_for_job``."""
        found, wait_s = await self.job(job), jobs.FIRST_POLL_S
        end = None if timeout_s is None else time.monotonic() + timeout_s
        with advancing(found.rows, progress) as advance:
            advance(found.rows_done)
            while not found.finished:
                if end is not None and time.monotonic() >= end:
                    raise ServiceUnavailableError(f"job {found.id} had not ended after {timeout_s:g} s", code="timeout")
                await asyncio.sleep(wait_s)
                wait_s = min(jobs.LONGEST_POLL_S, 1.5 * wait_s)
                before, found = found.rows_done, await self.job(found)
                advance(found.rows_done - before)
        return jobs.outcome_of(found)

    async def artifacts(self) -> tuple[ServedArtifact, ...]:
        """Return the artifacts that the service knows."""
        return bodies.listing_of(await self._send("GET", "/artifacts"))

    async def load(self, name: str) -> Artifact:
        """Load an artifact beside the others, for requests that name it, and return it; answers once it serves."""
        return bodies.changed_of(await self._send("POST", bodies.change_path(name, "load")))

    async def activate(self, name: str) -> Artifact:
        """Let another artifact answer where a request names none, and return it; answers once it serves."""
        return bodies.changed_of(await self._send("POST", bodies.change_path(name, "activate")))

    async def unload(self, name: str) -> Artifact:
        """Take an artifact off the service's memory, and return it; what is under way is still answered."""
        return bodies.changed_of(await self._send("POST", bodies.change_path(name, "unload")))

    async def ready(self) -> bool:
        """Return whether the service answers and is ready; one try."""
        try:
            return (await self._http.get("/health/ready")).status_code == 200
        except httpx.TransportError:
            return False

    async def wait_until_ready(self, timeout_s: float = 300.0) -> None:
        """Return once the service is ready.

        Raises:
            ServiceUnavailableError: it was not, for this long.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + timeout_s
        while not await self.ready():
            if loop.time() >= end:
                raise ServiceUnavailableError(f"the service was not ready for {timeout_s:g} s", code="not_ready")
            await asyncio.sleep(0.2)

    async def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        upload: Path | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        tried = 0
        while True:
            tried += 1
            failure: ServiceFailedError
            try:
                content = None if upload is None else jobs.chunks_async(upload)
                response = await self._http.request(method, path, json=body, content=content, headers=headers)
            except httpx.TransportError as error:
                failure = unreachable(error)
            else:
                if response.status_code in (200, 202):
                    return response
                failure = failure_of(response)
            wait_s = self._retries.wait_s(failure, tried)
            if wait_s is None:
                raise failure
            await asyncio.sleep(wait_s)
