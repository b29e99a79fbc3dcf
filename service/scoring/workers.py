"""Threads for what would keep the event loop: a few for each kind of work, so that no kind waits for another.

FastAPI's own threads are left to what is short: the metrics, above all.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from service.scoring.one_each import OneEach


class Workers:
    """The server's threads by kind of work.

    Attributes:
        tokenize: renders and tokenises prompts.
        parse: parses large bodies, one at a time: a parser keeps the interpreter to itself, and two of them would
            keep it from the event loop for twice as long.
        measure: computes the metrics of POST /evaluate and their bootstrap, one evaluation of each caller at a time.
        disk: reads and hashes artifacts that are not loaded, one at a time.
        names: looks whether an artifact that is not loaded is there, one at a time.
    """

    def __init__(self) -> None:
        self.tokenize = _threads("tokenize", 2)
        self.parse = _threads("parse", 1)
        self._measure = _threads("measure", 2)
        self.measure = OneEach(self._measure)
        self.disk = _threads("disk", 1)
        self.names = _threads("names", 1)

    def stop(self) -> None:
        """Begin nothing more; what runs is not waited for."""
        for threads in (self.tokenize, self.parse, self._measure, self.disk, self.names):
            threads.shutdown(wait=False, cancel_futures=True)


def _threads(name: str, most: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=most, thread_name_prefix=f"laplora-{name}")
