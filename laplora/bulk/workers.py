"""The blocks of a source, worked on in this process or by actors of Ray Data, each of which loads the artifact once."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from laplora import errors
from laplora.bulk.parts import Finished, Parts
from laplora.bulk.rows import Block, Row, Source
from laplora.errors import ConfigError, LaploraError, first_line
from laplora.ray_cluster import cluster, import_ray, machines

#: A row's number, its line with its end, and whether it has no answer.
Line = tuple[int, bytes, bool]
#: How often a block is begun that kills its workers, before the run ends. Ray would begin it for ever.
_TRIES = 4


class Job(Protocol):
    """What is done to each window of rows; it is sent to the workers."""

    def start(self) -> Callable[[Sequence[Row]], Iterable[Line]]:
        """Load what is needed, once a worker, and return what makes the lines of a window, one each and in order."""


@dataclass(frozen=True)
class Work:
    """All that a worker has to know.

    Attributes:
        job: what is done; source: the rows; parts: path or URL of the finished blocks.
        threads: of torch, in each worker.
    """

    job: Job
    source: Source
    parts: str
    threads: int


class Worker:
    """Runs blocks one after the other; the artifact is loaded with the first."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._lines: Callable[[Sequence[Row]], Iterable[Line]] | None = None

    def run(self, block: Block) -> Finished:
        """Work on a block, keep its lines, and return what is told of it; errors are the job's and the source's."""
        lines = self._lines = self._lines or self._work.job.start()
        windows = self._work.source.windows(block)
        return Parts(self._work.parts).write(block.number, (line for window in windows for line in lines(window)))


def run_here(work: Work, blocks: Sequence[Block]) -> Iterator[Finished]:
    """Work on blocks in this process, in order, and yield each once it is finished."""
    worker = Worker(work)
    with torch_threads(work.threads):
        for block in blocks:
            yield worker.run(block)


def run_by_ray(work: Work, blocks: Sequence[Block], *, workers: int, on_gpu: bool) -> Iterator[Finished]:
    """Work on blocks by actors of Ray Data, and yield each once it is finished, in any order.

    A block whose worker dies is begun again by another, ``_TRIES`` times in all. Ray is started on this machine, and
    stopped in the end, unless ``RAY_ADDRESS`` names a cluster or this process has connected to one.

    Args:
        workers: how many; on_gpu: whether each has a GPU of its own.

    Raises:
        ConfigError: Ray is not installed, has fewer GPUs, or no machine with so many processors.
        LaploraError: what a worker raised.
    """
    ray = import_ray("ray.data")
    with cluster(workers * work.threads):
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        found = machines(ray)
        if on_gpu and (gpus := sum(machine.gpus for machine in found)) < workers:
            raise ConfigError(f"{workers} workers need a GPU each, and there are {gpus}: give --device cpu, or fewer")
        largest = max((machine.cpus for machine in found if machine.gpus or not on_gpu), default=0)
        if largest < work.threads:  # Ray Data would wait for a larger one, and say nothing
            raise ConfigError(
                f"each worker has {work.threads} threads, and Ray's largest machine {'with a GPU ' if on_gpu else ''}"
                f"{largest} processors: give fewer --threads"
            )
        # One row is one block, and one block of Ray's: it is handed out, and if its worker dies again, by itself.
        numbers = ray.data.from_items([{"block": list(block)} for block in blocks], override_num_blocks=len(blocks))
        told = numbers.map_batches(
            _Actor,
            fn_constructor_args=(work,),
            batch_size=None,
            batch_format="pyarrow",
            # A second block in a GPU's queue hides the time between two; a processor gains more from even shares.
            compute=ray.data.ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2 if on_gpu else 1),
            num_cpus=work.threads,
            num_gpus=1 if on_gpu else 0,
        )
        try:
            for row in told.iter_rows():
                yield _finished(row["told"])
        except ray.exceptions.RayError as error:
            raise LaploraError(f"Ray gave up, and what is finished is kept: {first_line(error)[:400]}") from error


class _Actor:
    """A worker as Ray Data calls it, with tables of blocks."""

    def __init__(self, work: Work) -> None:
        self._worker, self._parts, self._threads = Worker(work), Parts(work.parts), work.threads

    def __call__(self, table: Any) -> Any:
        import pyarrow

        with torch_threads(self._threads):
            return pyarrow.table({"told": [self._told(Block(*block)) for block in table.column("block").to_pylist()]})

    def _told(self, block: Block) -> str:
        """Return what is told of a block; an error that laplora raises on purpose comes as its name and message."""
        try:
            if self._parts.begun(block.number) == _TRIES:
                raise LaploraError(
                    f"the block of rows that begins with {block.first} has ended {_TRIES} workers, which may have had "
                    "too little memory: what is finished is kept"
                )
            return json.dumps(asdict(self._worker.run(block)))
        except LaploraError as error:
            return json.dumps({"error": type(error).__name__, "message": str(error)})
        except OSError as error:
            message = f"{error.filename or 'a file'}: {error.strerror or error}"
            return json.dumps({"error": "DataError", "message": message})


def _finished(told: str) -> Finished:
    found = json.loads(told)
    if "error" in found:
        kind = getattr(errors, found["error"], LaploraError)
        raise kind(found["message"])
    return Finished(**found)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch compute with so many threads inside the block: how sums are split over threads decides last bits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
