"""Jobs in a database, as servers write them there."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from service.jobs.store.claims import ClaimLostError
from service.jobs.store.job_tables import JobTables
from service.jobs.store.records import About, ArtifactVersion, Job, JobOptions, ScoredRow, StoredStatus, Sums

#: What two servers write with.
Stores = tuple[JobTables, JobTables]
LINE = {"laplace": ([0.123456789, 0.876543211], 0.25), "map": ([0.123456789, 0.876543211], None)}
LEASE_S = 60.0
ARTIFACT = ArtifactVersion(name="fake", digest="sha256:fake", base_model="tiny", quantization="none")


def new_job(name: str = "a" * 32, rows: int = 6, key: str | None = None, **more: Any) -> Job:
    """Return a job that nothing has been done of; ``more`` is of its description."""
    values: dict[str, Any] = {
        "artifact": ARTIFACT, "labels": ("n", "p"), "options": JobOptions(), "rows": rows, "tokens": 4 * rows,
        "created_at": 1e9, "keep_rows": False, "upload_bytes": 1, "fields": ("text",), "columns": ("text", "label"),
        "labelled": rows, "answer_bytes": 0, "content": "", "rule": {},
    }  # fmt: skip
    return Job(name, "ann", key, About(**values | more))


def claimed(store: JobTables, job: Job, server: str = "a") -> int:
    """Return the number of a new job that a server has claimed, for the first time."""
    number = store.add(job)
    store.claims.hear(server, alone=False, lease_s=LEASE_S)
    others = [other.number for other in store.reads.jobs() if other.number != number]
    assert store.claims.claim(server, 99, without=others) == [number]
    return number


def add(
    store: JobTables, number: int, rows: range, bad: Mapping[int, str] = MappingProxyType({}), fence: int = 1
) -> bool:
    """Return whether rows were kept."""
    scored = [ScoredRow(row, row % 2, LINE, answer="{}") for row in rows if row not in bad]
    more: dict[str, Any] = {"sums": Sums(), "input_offset": rows.start, "started_at": 1e9}
    try:
        store.add_rows(number, (rows.start, rows.stop), fence=fence, scored=scored, bad=bad, **more)
    except ClaimLostError:
        return False
    return True


def end(store: JobTables, number: int, status: StoredStatus, **more: Any) -> None:
    store.end(number, status, finished_at=1e9, **more)


def kept_rows(store: JobTables, number: int) -> list[int]:
    return [one.row for one in store.reads.rows(number, -1, 10_000)]


def let_die(store: JobTables) -> None:
    """Let ``b`` hear that ``a`` was not heard of for long."""
    store.claims.hear("b", alone=False, lease_s=-1.0)
    store.claims.hear("b", alone=False, lease_s=LEASE_S)
