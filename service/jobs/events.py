"""The stream of a job's events: what is kept of its history, then what happens, until it has ended.

An event's id is its number among the job's, from 1, on disk: a reader goes on where it stopped, whatever server it
meets. Every reader of the newest events gets the same bytes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from service.jobs.board import JobBoard
from service.jobs.publishing import event_bytes
from service.jobs.records import Job
from service.jobs.shown import event_of

_HEARTBEAT_S = 15.0
_OPENING = b"retry: 2000\n\n"
_HEARTBEAT = b": the job goes on\n\n"
#: How many events are read from the disk at a time.
_PAGE = 50
#: How often what other servers did is looked up, while somebody follows.
_LOOK_S = 1.0


async def events(board: JobBoard, job: Job, after: int | None, reader: str) -> AsyncGenerator[bytes]:
    """Yield a job's events, as of server-sent events, until it has ended or the server stops.

    Args:
        after: number of the last event that the reader has; None: it begins with the job's state now.
        reader: name of the caller that reads.
    """
    # At once, so that the headers reach a client that waits for the first byte.
    yield _OPENING
    ledger = board.ledger
    seen = after if after is not None else max(0, job.events - 1)
    if after is None and not job.events:
        # Of a job that an earlier version of the server ended there are none.
        yield event_bytes(0, event_of(job))
    quiet_s = 0.0
    while True:
        changed, publishing = job.changed, job.publishing
        page = await ledger.publisher.events(job, seen, _PAGE)
        for sequence, event in page:
            seen = sequence
            if job.finished and sequence == job.events:
                job.told.add(reader)
            yield event
            quiet_s = 0.0
        if page:
            continue  # what changed while that was sent comes before any end
        if not publishing and changed is job.changed:
            if job.finished:
                job.told.add(reader)
                return
            if board.draining and job.status not in ("running", "paused"):
                return
        try:
            wait_s = min(_HEARTBEAT_S, _LOOK_S if ledger.disk.shared and not job.mine else _HEARTBEAT_S)
            async with asyncio.timeout(wait_s):
                await changed.wait()
        except TimeoutError:
            quiet_s += wait_s
            if wait_s < _HEARTBEAT_S:
                await board.fresh()
            if quiet_s >= _HEARTBEAT_S:
                quiet_s = 0.0
                yield _HEARTBEAT
