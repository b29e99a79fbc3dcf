"""The blocking client: the asynchronous one, on an event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import httpx

from laplora.client.asynchronous import AsyncClient
from laplora.client.retries import Retries

Given = ParamSpec("Given")
Result = TypeVar("Result")


def _waited(
    method: Callable[Concatenate[AsyncClient, Given], Coroutine[Any, Any, Result]],
) -> Callable[Concatenate[Client, Given], Result]:
    """Return the method that waits for what another one is awaited for."""

    @wraps(method)
    def call(client: Client, /, *arguments: Given.args, **options: Given.kwargs) -> Result:
        return client._result_of(method(client._asynchronous, *arguments, **options))

    return call


def _iterated(
    method: Callable[Concatenate[AsyncClient, Given], AsyncIterator[Result]],
) -> Callable[Concatenate[Client, Given], Iterator[Result]]:
    """Return the method that yields what another one yields asynchronously."""

    @wraps(method)
    def call(client: Client, /, *arguments: Given.args, **options: Given.kwargs) -> Iterator[Result]:
        rows: Any = method(client._asynchronous, *arguments, **options)

        async def following() -> Any:
            return await anext(rows, None)

        try:
            while (row := client._result_of(following())) is not None:
                yield row
        finally:
            if not client._loop.is_closed():
                client._result_of(rows.aclose())

    return call


class Client:
    """Talks to one service. A context manager, and safe to use from several threads.

    It has the methods of ``AsyncClient``, whose results need no ``await``. A function that is given as ``progress`` is
    called in the client's own thread, and cannot call the client. Ctrl-C closes the requests in flight.

    Args:
        address: as of ``AsyncClient``, like the other arguments.
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
        self._asynchronous = AsyncClient(
            address,
            api_key=api_key,
            timeout_s=timeout_s,
            retries=retries,
            batch_size=batch_size,
            in_flight=in_flight,
            transport=transport,
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="laplora-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if not self._loop.is_closed():
            self._result_of(self._asynchronous.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _result_of(self, work: Coroutine[Any, Any, Result]) -> Result:
        if threading.current_thread() is self._thread or not self._thread.is_alive():
            work.close()
            raise RuntimeError("a client that is closed, or was made before a fork, or is called by its own progress")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # where this was interrupted

    predict = _waited(AsyncClient.predict)
    feedback = _waited(AsyncClient.feedback)
    evaluate = _waited(AsyncClient.evaluate)
    suggest = _waited(AsyncClient.suggest)
    submit_job = _waited(AsyncClient.submit_job)
    job = _waited(AsyncClient.job)
    jobs = _waited(AsyncClient.jobs)
    job_results = _iterated(AsyncClient.job_results)
    download_job = _waited(AsyncClient.download_job)
    job_report = _waited(AsyncClient.job_report)
    cancel_job = _waited(AsyncClient.cancel_job)
    remove_job = _waited(AsyncClient.remove_job)
    wait_for_job = _waited(AsyncClient.wait_for_job)
    watch_job = _iterated(AsyncClient.watch_job)
    artifacts = _waited(AsyncClient.artifacts)
    load = _waited(AsyncClient.load)
    activate = _waited(AsyncClient.activate)
    unload = _waited(AsyncClient.unload)
    begin_shadow = _waited(AsyncClient.begin_shadow)
    shadow = _waited(AsyncClient.shadow)
    end_shadow = _waited(AsyncClient.end_shadow)
    condition = _waited(AsyncClient.condition)
    undo_condition = _waited(AsyncClient.undo_condition)
    ready = _waited(AsyncClient.ready)
    wait_until_ready = _waited(AsyncClient.wait_until_ready)
