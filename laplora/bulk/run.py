"""One run over a source, whatever is done to its rows: what is finished stays, what is not is worked on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import laplora
from laplora.bulk.parts import Finished, Parts
from laplora.bulk.rows import Source
from laplora.bulk.workers import Job, Work, run_by_ray, run_here
from laplora.errors import ConfigError

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact

#: Of what a run's description says; one of another is not continued.
_FORMAT = 2


@dataclass(frozen=True)
class Workers:
    """Who works.

    Attributes:
        count: 1 is this process; more are actors of Ray, with a GPU each where the device is one.
        device: auto, cpu, cuda, or for this process alone cuda:N.
        threads: of torch, in each.
    """

    count: int = 1
    device: str = "auto"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.count < 1 or self.threads < 1:
            raise ConfigError(f"workers and threads are at least 1, not {self.count} and {self.threads}")
        if self.count > 1 and self.device not in ("auto", "cpu", "cuda"):
            raise ConfigError(f"the device of several workers is auto, cpu or cuda, not {self.device!r}")

    @property
    def worker_device(self) -> str:
        """The device as each worker knows it."""
        return self.device if self.count == 1 else self.device_kind

    @property
    def device_kind(self) -> str:
        """``cpu`` or ``cuda``; a cluster may have GPUs where this machine has none."""
        from laplora.models.base import resolve_device

        return "cuda" if self.count > 1 and self.device == "cuda" else resolve_device(self.device).type


def described(
    what: str, artifact: Artifact, source: Source, workers: Workers, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what finished blocks are of: all that an answer depends on, and not how many work."""
    import torch

    return {
        "format": _FORMAT,
        "command": what,
        "laplora": laplora.__version__,
        "torch": torch.__version__,
        "artifact": artifact.digest,
        "source": source.identity(),
        "window": source.window,
        "device": workers.device_kind,
        "threads": workers.threads,
        **options,
    }


def finish(
    job: Job,
    source: Source,
    parts: str,
    run: Mapping[str, Any],
    workers: Workers,
    *,
    progress: Callable[[str], None] | None = None,
    stop: Callable[[Finished], None] = lambda _: None,
) -> list[Finished]:
    """Return all blocks of a source, finished, in order.

    Args:
        parts: path or URL of the finished blocks; run: of ``described``.
        progress: called with lines for people.
        stop: called with each block once it is finished; what it raises ends the run, and what is finished stays.

    Raises:
        ConfigError: the finished blocks are of another run, or the workers cannot be had.
        DataError: the source was changed, or a store does not answer.
    """
    say = progress or (lambda _line: None)
    blocks = source.blocks()
    found = Parts(parts).begin(run)
    for one in found.values():
        stop(one)
    left = [block for block in blocks if block.number not in found]
    if found:
        say(f"going on: {len(found)} of {len(blocks)} blocks are finished")
    if left:
        work, began, rows = Work(job, source, parts, workers.threads), time.monotonic(), 0
        count, on_gpu = min(workers.count, len(left)), workers.device_kind == "cuda"
        told = run_here(work, left) if workers.count == 1 else run_by_ray(work, left, workers=count, on_gpu=on_gpu)
        for done, one in enumerate(told, 1):
            found[one.number] = one
            stop(one)
            rows += one.rows
            if done % max(1, -(-len(left) // 20)) == 0 or done == len(left):
                rate = rows / (time.monotonic() - began)
                say(f"{len(found)} of {len(blocks)} blocks, {rate:.3g} rows a second")
    return [found[block.number] for block in blocks]


def shown_rows(numbers: Sequence[int], count: int) -> str:
    """Return row numbers as a person reads them, with how many more there are."""
    more = f" and {count - len(numbers)} more" if count > len(numbers) else ""
    return ", ".join(map(str, numbers)) + more
