"""The client that blocks; batches of a long list are in flight a few at a time, from threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
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


class Client:
    """Talks to one service. A context manager; may be used from several threads.

    Args:
        address: such as ``http://localhost:8000``.
        api_key: sent as a bearer token, where the service or a proxy before it wants one.
        timeout_s: for one try of one request.
        retries: when to try again.
        batch_size: inputs of one request at most; a request that is refused as too large is sent in halves.
        in_flight: requests at a time, from one call.
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
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(base_url=address, headers=headers, timeout=timeout_s, transport=transport)
        self._retries = retries or Retries()
        self._batch_size, self._in_flight = batch_size, in_flight

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
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
        """Return an answer per input, in order, however many there are.

        Args:
            inputs: each the template's fields (``text``; ``question`` and ``choices``; or ``prompt``), and perhaps
                an ``id``. For the rest see POST /predict on the service's page.
            timeout_s: that the service may take for a request; what of it still waits by then is dropped there.
            progress: true shows a bar; a function is called with the number of inputs answered just now.

        Raises:
            RequestRefusedError: an input or option that the service refuses; nothing is returned of the others.
            ServiceUnavailableError: no room, or not ready, at every try.
            ServiceUnreachableError: no answer came.
            ServiceFailedError: any other failure of the service.
            DataError: no inputs, or one that is no mapping.
        """
        options = bodies.predict_options(mode, predictive, target_risk, covariance, truncate, order_average, timeout_s)
        batches = bodies.in_batches(inputs, self._batch_size)
        stop = threading.Event()
        with advancing(sum(map(len, batches)), progress) as advance, ThreadPoolExecutor(self._in_flight) as pool:
            futures = [pool.submit(self._batch, batch, artifact, options, advance, stop) for batch in batches]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # after a failure or Ctrl-C nothing more is sent
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
            failed = [f for f in futures if f.done() and not f.cancelled() and f.exception()]
            for future in failed:
                future.result()
            return bodies.answers_of([part for future in futures for part in future.result()])

    def _batch(
        self,
        inputs: Sequence[Mapping[str, Any]],
        artifact: str | None,
        options: Mapping[str, Any],
        advance: Advance,
        stop: threading.Event,
    ) -> list[tuple[httpx.Response, int]]:
        try:
            response = self._send("POST", "/predict", bodies.body_of(inputs, artifact, options), stop)
        except RequestRefusedError as failure:
            if not bodies.can_be_split(failure, len(inputs)):
                raise
            half = len(inputs) // 2
            parts = (inputs[:half], inputs[half:])
            return [found for part in parts for found in self._batch(part, artifact, options, advance, stop)]
        advance(len(inputs))
        return [(response, len(inputs))]

    def feedback(self, labels: bodies.Labels) -> tuple[FeedbackResult, ...]:
        """Tell the true labels of earlier predictions; return what became of each, in order.

        Telling a label again changes nothing, so a request whose answer was lost is sent again, and then says
        ``repeated``.

        Args:
            labels: by ``prediction_id``, or pairs of both.

        Raises:
            RequestRefusedError: a label that its prediction did not have, or a service that keeps no predictions;
                earlier batches of a long list have been recorded.
            ServiceFailedError: as ``predict``.
        """
        found: list[FeedbackResult] = []
        for batch in bodies.feedback_batches(labels, self._batch_size):
            found += self._feed(batch)
        return tuple(found)

    def _feed(self, items: Sequence[Mapping[str, str]]) -> tuple[FeedbackResult, ...]:
        try:
            return bodies.fed_of(self._send("POST", "/feedback", {"items": items}), len(items))
        except RequestRefusedError as failure:
            if not bodies.can_be_split(failure, len(items)):
                raise
            half = len(items) // 2
            return self._feed(items[:half]) + self._feed(items[half:])

    def evaluate(
        self,
        inputs: bodies.Inputs,
        *,
        truncate: bool = False,
        order_average: bool = False,
        timeout_s: float | None = None,
        artifact: str | None = None,
    ) -> Evaluated:
        """Return the metrics of every predictive on inputs that have their true ``label``; one request.

        Raises:
            RequestRefusedError: among others, more inputs than one request may bring.
            ServiceFailedError, DataError: as ``predict``.
        """
        options = bodies.predict_options(None, None, None, False, truncate, order_average, timeout_s)
        (rows,) = bodies.in_batches(inputs, 1 << 62)
        return bodies.evaluated_of(self._send("POST", "/evaluate", bodies.body_of(rows, artifact, options)))

    def submit_job(
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
        """Return the job of an upload, which the service goes on with by itself, across its restarts too.

        Args:
            inputs: as of ``evaluate``, however many, or the path of a JSON Lines file of them.
            bins, resamples, seed: of the metrics; None: the service's.
            idempotency_key: the same key again gives the same job; None: a new job, once, however often it is sent.

        Raises:
            RequestRefusedError: a line that the service refuses (field ``lines.N``, from 1), or too many.
            ServiceFailedError: as ``predict``.
            DataError: no inputs, or one that is no mapping.
        """
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
            return bodies.job_of(self._send("POST", where, upload=path, headers=headers))

    def job(self, job: Job | str) -> Job:
        """Return how far a job is, by itself or its id."""
        return bodies.job_of(self._send("GET", jobs.path_of(job)))

    def jobs(self) -> tuple[Job, ...]:
        """Return one's jobs, the newest first, without results."""
        return bodies.jobs_of(self._send("GET", jobs.query_of()))

    def cancel_job(self, job: Job | str) -> Job:
        """Cancel a job, and return it. One that has ended stays as it is, its result too."""
        return bodies.job_of(self._send("POST", jobs.cancel_path(job)))

    def remove_job(self, job: Job | str) -> None:
        """Remove a job that has ended, with its result.

        Raises:
            RequestRefusedError: it has not ended (code ``job_not_ended``): cancel it first. Or there is none.
        """
        jobs.check_ended(self.job(job))
        self._send("DELETE", jobs.path_of(job))

    def wait_for_job(
        self, job: Job | str, *, timeout_s: float | None = None, progress: bool | Advance = False
    ) -> Evaluated:
        """Return a job's metrics, once it has ended; cancel it with ``cancel_job``, for no wait does.

        Rows that could not be scored are no part of them: a ``UserWarning`` says how many there were.

        Args:
            timeout_s: None waits for as long as it takes.
            progress: true shows a bar; a function is called with the number of inputs answered just now.

        Raises:
            JobFailedError: it failed, or was cancelled.
            ServiceUnavailableError: it had not ended after ``timeout_s`` (code ``timeout``).
        """
        found, wait_s = self.job(job), jobs.FIRST_POLL_S
        end = None if timeout_s is None else time.monotonic() + timeout_s
        with advancing(found.rows, progress) as advance:
            advance(found.rows_done)
            while not found.finished:
                if end is not None and time.monotonic() >= end:
                    raise ServiceUnavailableError(f"job {found.id} had not ended after {timeout_s:g} s", code="timeout")
                time.sleep(wait_s)
                wait_s = min(jobs.LONGEST_POLL_S, 1.5 * wait_s)
                before, found = found.rows_done, self.job(found)
                advance(found.rows_done - before)
        return jobs.outcome_of(found)

    def artifacts(self) -> tuple[ServedArtifact, ...]:
        """Return the artifacts that the service knows."""
        return bodies.listing_of(self._send("GET", "/artifacts"))

    def load(self, name: str) -> Artifact:
        """Load an artifact beside the others, for requests that name it, and return it; answers once it serves."""
        return bodies.changed_of(self._send("POST", bodies.change_path(name, "load")))

    def activate(self, name: str) -> Artifact:
        """Let another artifact answer where a request names none, and return it; answers once it serves."""
        return bodies.changed_of(self._send("POST", bodies.change_path(name, "activate")))

    def unload(self, name: str) -> Artifact:
        """Take an artifact off the service's memory, and return it; what is under way is still answered."""
        return bodies.changed_of(self._send("POST", bodies.change_path(name, "unload")))

    def ready(self) -> bool:
        """Return whether the service answers and is ready; one try."""
        try:
            return self._http.get("/health/ready").status_code == 200
        except httpx.TransportError:
            return False

    def wait_until_ready(self, timeout_s: float = 300.0) -> None:
        """Return once the service is ready.

        Raises:
            ServiceUnavailableError: it was not, for this long.
        """
        end = time.monotonic() + timeout_s
        while not self.ready():
            if time.monotonic() >= end:
                raise ServiceUnavailableError(f"the service was not ready for {timeout_s:g} s", code="not_ready")
            time.sleep(0.2)

    def _send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        stop: threading.Event | None = None,
        *,
        upload: Path | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        tried = 0
        while True:
            tried += 1
            failure: ServiceFailedError
            try:
                content = None if upload is None else jobs.chunks(upload)
                response = self._http.request(method, path, json=body, content=content, headers=headers)
            except httpx.TransportError as error:
                failure = unreachable(error)
            else:
                if response.status_code in (200, 202):
                    return response
                failure = failure_of(response)
            wait_s = self._retries.wait_s(failure, tried)
            if wait_s is None:
                raise failure
            if stop is None:
                time.sleep(wait_s)
            elif stop.wait(wait_s):
                raise failure
