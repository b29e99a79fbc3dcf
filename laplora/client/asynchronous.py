"""The asynchronous client."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import httpx

from laplora.client import changes, jobs, requests, responses
from laplora.client.answers import (
    Answers,
    Artifact,
    Conditioned,
    Evaluated,
    FeedbackResult,
    ServedArtifact,
    Shadow,
    ShadowAnswer,
    Suggested,
)
from laplora.client.failures import (
    RequestRefusedError,
    ServiceFailedError,
    ServiceUnavailableError,
    ServiceUnreachableError,
)
from laplora.client.jobs import Inputs, Job, JobRow
from laplora.client.requests import Advance, advancing, each
from laplora.client.retries import Retries

Row = TypeVar("Row")
Part = TypeVar("Part")
Answer = TypeVar("Answer")
State = TypeVar("State", Job, changes.Change)
Detail = Literal["short", "full"]
_CHUNK_BYTES = 1 << 18


class AsyncClient:
    """Talks to one service. An asynchronous context manager.

    Args:
        address: such as ``http://localhost:8000``.
        api_key: sent as a bearer token, where the service or a proxy before it requires one.
        timeout_s: for one try of one request.
        retries: when to try again.
        batch_size: most inputs of one request. A request that is refused as too large is sent in halves.
        in_flight: most requests at a time, of one call.
        transport: of httpx, in place of the network.
    """

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

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        predictive: str | None = None,
        target_risk: float | Mapping[str, float] | None = None,
        costs: Mapping[str, Any] | None = None,
        detail: Detail | None = None,
        fields: Sequence[str] | None = None,
        variance: bool = False,
        covariance: bool = False,
        truncate: bool = False,
        timeout_s: float | None = None,
        artifact: str | None = None,
        progress: bool | Advance = False,
    ) -> Answers:
        """Return an answer per input, in order, however many there are.

        Args:
            inputs: each has the template's fields (``text``; ``question`` and ``choices``; or ``prompt``), and an
                ``id`` if you like. For the other arguments see POST /predict on the service's page. Fields that a short
                answer lacks are None.
            timeout_s: how long the service may take for one request. It drops what still waits by then.
            progress: true shows a bar. A function is called with the number of inputs answered since its last call.

        Raises:
            ServiceFailedError: or one of its kinds, after the last try. The other answers are lost.
            DataError: no inputs, or one that is no mapping.
        """
        options = requests.stated(
            predictive=predictive,
            target_risk=target_risk,
            costs=costs,
            detail=detail,
            fields=None if fields is None else list(fields),
            variance=variance,
            covariance=covariance,
            truncate=truncate,
            timeout_s=timeout_s,
        )
        rows = list(requests.checked(inputs))
        with advancing(len(rows), progress) as advance:

            async def answer(batch: Sequence[Mapping[str, Any]]) -> responses.Predicted:
                response = await self._send("POST", "/predict", json=requests.body_of(batch, artifact, options))
                advance(len(batch))
                return responses.predicted(response, len(batch))

            in_halves = partial(self._in_halves, answer)
            parts = await each(in_halves, requests.batches(rows, self._batch_size), self._in_flight)
        return responses.joined([part for halves in parts for part in halves])

    async def _in_halves(self, send: Callable[[Sequence[Row]], Awaitable[Part]], rows: Sequence[Row]) -> list[Part]:
        """Return what rows are answered with: one part, or several where they are too many for one request."""
        try:
            return [await send(rows)]
        except RequestRefusedError as failure:
            if failure.status != 413 or len(rows) == 1:
                raise
        half = len(rows) // 2
        return await self._in_halves(send, rows[:half]) + await self._in_halves(send, rows[half:])

    async def feedback(self, labels: requests.Labels) -> tuple[FeedbackResult, ...]:
        """Send the true labels of earlier predictions; return what became of each, in order.

        A label that is sent again changes nothing, and its result is ``repeated``.

        Args:
            labels: by ``prediction_id``, or pairs of both; where several may be right, each is the list of those that
                are. If it raises, earlier batches have been recorded.
        """

        async def tell(batch: Sequence[Mapping[str, str]]) -> tuple[FeedbackResult, ...]:
            return responses.fed(await self._send("POST", "/feedback", json={"items": batch}), len(batch))

        results: list[FeedbackResult] = []
        for batch in requests.batches(requests.feedback_items(labels), self._batch_size):
            for part in await self._in_halves(tell, batch):
                results += part
        return tuple(results)

    async def evaluate(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        truncate: bool = False,
        target_risk: float | Mapping[str, float] | None = None,
        costs: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        artifact: str | None = None,
    ) -> Evaluated:
        """Return the metrics of every predictive on inputs with their true ``label``, sent as one request.

        If several labels may be right, ``label`` is the list of those that are. ``target_risk`` and ``costs`` are as of
        ``predict``.

        Raises as ``predict``.
        """
        options = requests.stated(truncate=truncate, target_risk=target_risk, costs=costs, timeout_s=timeout_s)
        body = requests.body_of(requests.checked(inputs), artifact, options)
        return responses.parsed(Evaluated, await self._send("POST", "/evaluate", json=body))

    async def suggest(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        count: int | None = None,
        least_familiarity: float | None = None,
        truncate: bool = False,
        timeout_s: float | None = None,
        artifact: str | None = None,
    ) -> Suggested:
        """Return which of some inputs to label next, sent as one request; the service keeps none of them.

        Args:
            count: most inputs to suggest; least_familiarity: inputs of less are left out. None: the service's.

        Raises as ``predict``.
        """
        options = requests.stated(
            count=count, least_familiarity=least_familiarity, truncate=truncate, timeout_s=timeout_s
        )
        body = requests.body_of(requests.checked(inputs), artifact, options)
        return responses.parsed(Suggested, await self._send("POST", "/suggest", json=body))

    async def submit_job(
        self,
        inputs: Inputs,
        *,
        truncate: bool = False,
        bins: int | None = None,
        resamples: int | None = None,
        seed: int | None = None,
        artifact: str | None = None,
        keep_rows: bool | None = None,
        idempotency_key: str | None = None,
    ) -> Job:
        """Upload inputs; return the job that the service makes of them, and continues across its restarts.

        Args:
            inputs: as of ``evaluate``, however many, or the path of a JSON Lines file of them. An input without
                ``label`` is answered, and not measured. Its other fields are kept beside its answer.
            bins, resamples, seed: of the metrics; None: the service's.
            keep_rows: whether the service keeps every row and its answer with the job; None: it does.
            idempotency_key: the same key again gives the same job. None: one new job, however often it is sent.

        Raises as ``predict``; the field of a refused line is ``lines.N``, from 1, and ``lines`` has all that are bad.
        """
        options = requests.stated(
            truncate=truncate,
            bins=bins,
            resamples=resamples,
            seed=seed,
            artifact=artifact,
            keep_rows=keep_rows,
        )
        # With a new key where the caller gives none, a retry makes no second job.
        headers = {"content-type": "application/jsonl", "idempotency-key": idempotency_key or uuid.uuid4().hex}
        with jobs.upload_file(inputs) as path:
            response = await self._send("POST", jobs.PATH, upload=path, params=options, headers=headers)
        return responses.parsed(Job, response)

    async def job(self, job: Job | str) -> Job:
        """Return the present state of a job, by the job or its id."""
        return responses.parsed(Job, await self._send("GET", jobs.path_of(job)))

    async def jobs(self) -> tuple[Job, ...]:
        """Return all of the caller's jobs, the newest first, without results."""
        listed: list[Job] = []
        before: str | None = None
        while True:
            params = requests.stated(before=before)
            page = responses.parsed(jobs.JobPage, await self._send("GET", jobs.PATH, params=params))
            listed += page.jobs
            if page.next is None or page.next == before:
                return tuple(listed)
            before = page.next

    async def job_results(self, job: Job | str, *, detail: Detail | None = None) -> AsyncIterator[JobRow]:
        """Yield every row of a job that is over, in order, with its answer; never more than a few in memory.

        A download that breaks off goes on where it stopped, as often as a request is tried.

        Raises as ``predict``, and RequestRefusedError (code ``rows_not_kept``) where the service keeps none.
        """
        async for line in self._result_lines(job, detail):
            yield jobs.read_row(line)

    async def _result_lines(self, job: Job | str, detail: Detail | None) -> AsyncIterator[bytes]:
        """Yield the lines of a download as they come; it goes on where it broke off."""
        path, count, tried = f"{jobs.path_of(job)}/results", 0, 0
        while True:
            tried += 1
            try:
                params = requests.stated(after=count or None, detail=detail)
                async with self._http.stream("GET", path, params=params) as response:
                    if response.status_code != 200:
                        await response.aread()
                        raise responses.failure_of(response)
                    rest = b""
                    async for chunk in response.aiter_bytes():
                        *whole, rest = (rest + chunk).split(b"\n")
                        for line in whole:
                            yield line
                            count, tried = count + 1, 0
                return
            except (httpx.TransportError, ServiceUnavailableError, ServiceUnreachableError) as error:
                failure = error
            await self._wait(failure, max(1, tried))

    async def download_job(self, job: Job | str, path: str | os.PathLike[str], *, detail: Detail | None = None) -> Path:
        """Write every row of a job that is over, with its answer, into a file of JSON Lines; return its path.

        The file is there whole or not at all.

        Raises as ``job_results``.
        """
        target = Path(path)
        partial_file = target.with_name(f".{target.name}.part")
        try:
            with partial_file.open("wb") as file:
                async for line in self._result_lines(job, detail):
                    file.write(line + b"\n")
            return partial_file.replace(target)
        finally:
            partial_file.unlink(missing_ok=True)

    async def job_report(self, job: Job | str, *, texts: bool = False) -> str:
        """Return the report of a job that is done, one HTML page: whether to ship the artifact by its rows, and why.

        Args:
            texts: whether it shows the rows' texts.

        Raises as ``job_results``, and RequestRefusedError (code ``report_not_found``) where the job is not done.
        """
        params = requests.stated(texts=texts or None)
        return (await self._send("GET", f"{jobs.path_of(job)}/report", params=params)).text

    async def cancel_job(self, job: Job | str) -> Job:
        """Cancel a job, and return it. A job that has ended stays as it is, with its result."""
        return responses.parsed(Job, await self._send("POST", f"{jobs.path_of(job)}/cancel"))

    async def remove_job(self, job: Job | str) -> None:
        """Remove a job with its upload, its rows and its result. One that has not ended is cancelled first."""
        await self._send("DELETE", jobs.path_of(job))

    async def wait_for_job(
        self, job: Job | str, *, timeout_s: float | None = None, progress: bool | Advance = False
    ) -> Evaluated:
        """Wait for a job to end; return the metrics of its rows with a label, no ``methods`` where none has one.

        However the wait ends, only ``cancel_job`` cancels the job.

        Rows that could not be scored are not part of the metrics: a ``UserWarning`` gives their number.

        Args:
            timeout_s: None waits for as long as it takes.
            progress: as of ``predict``.

        Raises:
            JobFailedError: it failed, or was cancelled.
            ServiceUnavailableError: it had not ended after ``timeout_s`` (code ``timeout``).
        """
        end = None if timeout_s is None else time.monotonic() + timeout_s
        seen = await self.job(job)
        with advancing(seen.rows, progress) as advance:
            advance(seen.rows_done)
            async for state in self.watch_job(seen):
                advance(state.rows_done - seen.rows_done)
                seen = state
                if not state.finished and end is not None and time.monotonic() >= end:
                    raise ServiceUnavailableError(f"job {state.id} had not ended after {timeout_s:g} s", code="timeout")
        return jobs.outcome_of(seen)

    def watch_job(self, job: Job | str, *, retries: Retries | None = None) -> AsyncIterator[Job]:
        """Return an iterator of a job's state now, and at each look after it, up to 2 s apart, until it has ended.

        However that ends, only ``cancel_job`` cancels the job.

        Args:
            retries: for a service that is not there, also behind a proxy, in place of the client's own.

        Raises as ``predict``.
        """
        return self._states(Job, jobs.path_of(job), retries)

    async def _states(self, kind: type[State], path: str, retries: Retries | None = None) -> AsyncIterator[State]:
        """Yield the states of a job or a change until it has ended; as ``watch_job``."""
        wait_s, tried = jobs.FIRST_POLL_S, 0
        while True:
            tried += 1
            try:
                state = responses.parsed(kind, await self._once("GET", path))
            except (httpx.TransportError, ServiceFailedError) as error:
                failure = jobs.restarting(error) if isinstance(error, ServiceFailedError) else error
                await self._wait(failure, tried, retries)
                continue
            yield state
            if state.finished:
                return
            await asyncio.sleep(wait_s)
            wait_s, tried = min(jobs.LONGEST_POLL_S, 1.5 * wait_s), 0

    async def artifacts(self) -> tuple[ServedArtifact, ...]:
        """Return the artifacts that the service knows."""
        return responses.parsed(tuple[ServedArtifact, ...], await self._send("GET", "/artifacts"), "artifacts")

    async def load(self, name: str, *, timeout_s: float = 1800.0) -> Artifact:
        """Load an artifact beside the others, for requests that name it; return it once it serves.

        Args:
            timeout_s: how long to wait for that. The change goes on after it.

        Raises:
            RequestRefusedError: the service refused it at once.
            ChangeFailedError: it failed later. ``code`` of both is the service's name of the error.
            ServiceUnavailableError: it had not ended after ``timeout_s`` (code ``timeout``).
        """
        return await self._changed(Artifact, name, "load", timeout_s, part="artifact")

    async def activate(self, name: str, *, timeout_s: float = 1800.0) -> Artifact:
        """Let an artifact answer the requests that name none; return it once it serves. Arguments as of ``load``."""
        return await self._changed(Artifact, name, "activate", timeout_s, part="artifact")

    async def unload(self, name: str) -> Artifact:
        """Remove an artifact from the service's memory, and return it. Requests under way are still answered."""
        return responses.parsed(
            Artifact, await self._send("POST", changes.artifact_path(name, "unload"), once=True), "artifact"
        )

    async def begin_shadow(
        self, name: str, *, share: float = 0.1, activate_if_better: Sequence[str] = (), confidence: float = 0.95
    ) -> Shadow | None:
        """Let a loaded artifact answer a share of rows beside the active one, which no client sees.

        Args:
            activate_if_better: ``accepted_share``, ``accuracy`` or ``nll``: figures in which it has to be better for
                certain, all of them, to be activated.
            confidence: that no look ever calls a figure better that is not.
        """
        figures = [activate_if_better] if isinstance(activate_if_better, str) else [*activate_if_better]
        body = {"share": share, "activate_if_better": figures, "confidence": confidence}
        response = await self._send("POST", changes.artifact_path(name, "shadow"), json=body)
        return responses.parsed(ShadowAnswer, response).shadow

    async def shadow(self) -> Shadow | None:
        """Return how the candidate in the shadow compares; None where there is none."""
        return responses.parsed(ShadowAnswer, await self._send("GET", "/shadow")).shadow

    async def end_shadow(self, name: str) -> Shadow | None:
        """Let this candidate answer no more, and return how it compared; None where it is not the candidate."""
        response = await self._send("DELETE", changes.artifact_path(name, "shadow"))
        return responses.parsed(ShadowAnswer, response).shadow

    async def condition(
        self,
        name: str,
        rows: Iterable[Mapping[str, Any]] = (),
        *,
        changes: Mapping[str, Any] | None = None,
        digest: str | None = None,
        force: bool = False,
        timeout_s: float = 1800.0,
    ) -> Conditioned:
        """Let a loaded artifact learn from labelled rows, without training; return what they change once it serves.

        Sent twice it is the same as sent once: every conditioning begins at the artifact as it was packaged.

        Args:
            rows: every row that it is to know: the template's fields, and ``label``.
            changes: of its labels: ``rename``, ``merge``, ``split`` and ``add``.
            digest: that the artifact must have, or the request is refused; None: any.
            force: whether to take a version that answers worse.
            timeout_s: as of ``load``; so is what this raises.
        """
        body = {"rows": [dict(row) for row in rows], **requests.stated(changes=changes, digest=digest, force=force)}
        return await self._changed(Conditioned, name, "condition", timeout_s, json=body)

    async def undo_condition(self, name: str, *, digest: str | None = None, timeout_s: float = 1800.0) -> Artifact:
        """Put a conditioned artifact back as it was packaged, and return that version; arguments as of ``condition``.

        Called again, when it has happened, it is refused.
        """
        body = requests.stated(digest=digest)
        return await self._changed(Artifact, name, "condition/undo", timeout_s, part="artifact", json=body)

    async def _changed(
        self, kind: type[Answer], name: str, change: str, timeout_s: float, *, part: str | None = None, **request: Any
    ) -> Answer:
        """Ask for a change once, however often it is sent; return what it came to, or one part of that."""
        end, path = time.monotonic() + timeout_s, changes.artifact_path(name, change)
        response = await self._send("POST", path, headers={"idempotency-key": uuid.uuid4().hex}, **request)
        begun = responses.parsed(changes.Change, response)
        async for state in self._states(changes.Change, changes.path_of(begun.id)):
            if not state.finished and time.monotonic() >= end:
                what = f"{state.kind} of {state.artifact} (change {state.id}) goes on: it had not ended"
                raise ServiceUnavailableError(f"{what} after {timeout_s:g} s", code="timeout")
            begun = state
        return responses.typed(kind, changes.outcome_of(begun), response, part)

    async def ready(self) -> bool:
        """Return whether the service answers and is ready; one try."""
        try:
            response = await self._http.get("/health/ready")
        except httpx.TransportError:
            return False
        return response.status_code == 200

    async def wait_until_ready(self, timeout_s: float = 300.0) -> None:
        """Return once the service is ready; raise ServiceUnavailableError where it was not in time."""
        end = time.monotonic() + timeout_s
        while not await self.ready():
            if time.monotonic() >= end:
                raise ServiceUnavailableError(f"the service was not ready for {timeout_s:g} s", code="not_ready")
            await asyncio.sleep(0.2)

    async def _send(
        self, method: str, path: str, *, upload: Path | None = None, once: bool = False, **request: Any
    ) -> httpx.Response:
        """Return the response to a request that succeeded, at the first try or a later one.

        Args:
            once: whether it is not to be sent again where something may have come of it.
        """
        tried = 0
        while True:
            tried += 1
            try:
                return await self._once(method, path, content=None if upload is None else _chunks(upload), **request)
            except (httpx.TransportError, ServiceFailedError) as error:
                failure = error
            await self._wait(failure, tried, Retries(tries=1) if once and not responses.did_nothing(failure) else None)

    async def _once(self, method: str, path: str, **request: Any) -> httpx.Response:
        """Return the response to a request that succeeded at once."""
        response = await self._http.request(method, path, **request)
        if response.status_code not in (200, 202):
            raise responses.failure_of(response)
        return response

    async def _wait(
        self, error: httpx.TransportError | ServiceFailedError, tried: int, retries: Retries | None = None
    ) -> None:
        """Wait before a request is tried again; raise what went wrong where it is not."""
        failure = responses.unreachable(error) if isinstance(error, httpx.TransportError) else error
        wait_s = (retries or self._retries).wait_s(failure, tried)
        if wait_s is None:
            raise failure
        await asyncio.sleep(wait_s)


async def _chunks(path: Path) -> AsyncIterator[bytes]:
    """Yield a file's bytes. Reading 256 KB from a disk delays an event loop less than starting a thread does."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
