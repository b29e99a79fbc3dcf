"""One run over the blocks of a source, whatever is done to its rows: in this process, or by actors of Ray Data.

Finished blocks stay, unfinished ones are computed. Each worker loads the artifact once.
"""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import laplora
from laplora.bulk.parts import Finished, Line, Parts, finished
from laplora.bulk.rows import Block, Source
from laplora.data.lines import Row
from laplora.errors import ConfigError, LaploraError, first_line
from laplora.execution.ray_cluster import cluster, import_ray, machines
from laplora.remote.places import place_of

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact

#: How often a block is begun that kills its workers, before the run ends. Ray would begin it for ever.
_TRIES = 4
#: The prefix of an error's bytes.
_ERROR = b"error "

#: Loads what is needed, once a worker, and returns what makes the lines of a window of rows, one each and in order. It
#: is sent to the workers.
Start = Callable[[], Callable[[Sequence[Row]], Iterable[Line]]]


@dataclass(frozen=True)
class Workers:
    """Who works.

    Attributes:
        count: 1 is this process; more are actors of Ray, with a GPU each where the device is one. Each loads the model.
        device: auto, cpu, cuda, or for this process alone cuda:N.
        threads: of torch, in each; with other threads the last digits may be others. None: as many as torch has.

    Raises:
        ConfigError: what cannot be.
    """

    count: int = 1
    device: str = "auto"
    threads: int | None = 1

    def __post_init__(self) -> None:
        if self.count < 1 or self.threads == 0:
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


class Worker:
    """Works on blocks, one after the other; the artifact is loaded with the first.

    Args:
        begun: of Ray's workers the actor ``_Begun``.
    """

    def __init__(self, start: Start, source: Source, threads: int | None, begun: Any = None) -> None:
        self._start, self._source, self._threads, self._begun = start, source, threads, begun
        self._lines: Callable[[Sequence[Row]], Iterable[Line]] | None = None

    def work(self, block: Block) -> bytes:
        """Return a block as ``finished`` does; errors are the job's and the source's."""
        from laplora.execution.workers import torch_threads

        with torch_threads(self._threads):
            lines = self._lines = self._lines or self._start()
            windows = self._source.windows(block)
            return finished(block.number, (line for window in windows for line in lines(window)))

    def __call__(self, table: Any) -> Any:
        """Do so for a table of blocks of Ray Data."""
        import pyarrow

        made = [self._told(Block(*block)) for block in table.column("block").to_pylist()]
        return pyarrow.table({"block": pyarrow.array(made, pyarrow.large_binary())})

    def _told(self, block: Block) -> bytes:
        """Return a block, or of an error that laplora raises on purpose its name and its message."""
        import ray

        try:
            if ray.get(self._begun.begin.remote(block.number)) > _TRIES:
                raise LaploraError(
                    f"the block of rows that begins with {block.first} has ended {_TRIES} workers, which may have had "
                    "too little memory: what is finished is kept"
                )
            return self.work(block)
        except LaploraError as error:
            return _ERROR + json.dumps([type(error).__name__, str(error)]).encode()
        except OSError as error:
            message = f"{error.filename or 'a file'}: {error.strerror or error}"
            return _ERROR + json.dumps(["DataError", message]).encode()


class _Begun:
    """An actor that counts how often blocks are begun."""

    def __init__(self) -> None:
        self._counts = Counter[int]()

    def begin(self, number: int) -> int:
        """Return how often a block was begun, this time counted in."""
        self._counts[number] += 1
        return self._counts[number]


def worked(start: Start, source: Source, blocks: Sequence[Block], who: Workers) -> Iterator[bytes]:
    """Yield each block, as ``finished`` does, once it is: here in order, by Ray in any order.

    By Ray, a block whose worker dies is begun again by another, ``_TRIES`` times in all. Ray is started on this
    machine, and stopped in the end, unless ``RAY_ADDRESS`` names a cluster or this process has connected to one.

    Raises:
        ConfigError: Ray is not installed, or has no room.
        LaploraError: what a worker raised.
    """
    if who.count == 1:
        yield from map(Worker(start, source, who.threads).work, blocks)
        return
    ray = import_ray("ray.data")
    count, threads, on_gpu = min(who.count, len(blocks)), who.threads or 1, who.device_kind == "cuda"
    with cluster(count * threads):
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        room = sum(one.gpus if on_gpu else 1 for one in machines(ray) if one.cpus >= threads)
        if room < (count if on_gpu else 1):  # Ray Data would wait for more, and say nothing
            raise ConfigError(
                f"Ray has no room for {count} workers of {threads} threads{' and a GPU each' if on_gpu else ''}: give "
                "fewer --workers or --threads, or --device cpu"
            )
        # One row is one block, and one block of Ray's: it is handed out, and if its worker dies again, by itself.
        numbers = ray.data.from_items([{"block": list(block)} for block in blocks], override_num_blocks=len(blocks))
        made = numbers.map_batches(
            Worker,
            fn_constructor_args=(start, source, threads, ray.remote(num_cpus=0)(_Begun).remote()),
            batch_size=None,
            batch_format="pyarrow",
            # A second block in a GPU's queue hides the time between two; a processor gains more from even shares.
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=2 if on_gpu else 1),
            num_cpus=threads,
            num_gpus=1 if on_gpu else 0,
        )
        try:
            for row in made.iter_rows():
                if row["block"].startswith(_ERROR):
                    name, message = json.loads(row["block"].removeprefix(_ERROR))
                    raise getattr(laplora.errors, name, LaploraError)(message)
                yield row["block"]
        except ray.exceptions.RayError as error:
            raise LaploraError(f"Ray gave up, and what is finished is kept: {first_line(error)[:400]}") from error


def finish(
    start: Start,
    source: Source,
    parts: Parts,
    who: Workers,
    artifact: Artifact,
    options: Mapping[str, Any],
    progress: Callable[[str], None] | None = None,
) -> list[Finished]:
    """Return all blocks of a source, finished, in order.

    Args:
        parts: of the finished blocks, which are held.
        artifact, options: all else that a line depends on.
        progress: called with lines for people.

    Raises:
        ConfigError: the finished blocks are of another run, or the workers cannot be had.
        DataError: the source was changed, or a store does not answer.
        LaploraError: what a worker raised; what is finished stays.
    """
    import torch

    say = progress or (lambda _line: None)
    blocks = source.blocks()
    run = {
        "laplora": laplora.__version__,
        "torch": torch.__version__,
        "artifact": artifact.digest,
        "source": place_of(source.place).identity(),
        "window": source.window,
        "device": who.device_kind,
        "threads": who.threads,
        **options,
    }
    finished = parts.begin(run)
    left = [block for block in blocks if block.number not in finished]
    if finished:
        say(f"going on: {len(finished)} of {len(blocks)} blocks are finished")
    began, rows = time.monotonic(), 0
    for done, block in enumerate(worked(start, source, left, who) if left else (), 1):
        one = parts.keep(block)
        finished[one.number] = one
        rows += one.rows
        if done % -(-len(left) // 20) == 0 or done == len(left):
            say(f"{len(finished)} of {len(blocks)} blocks, {rows / (time.monotonic() - began):.3g} rows a second")
    return [finished[block.number] for block in blocks]
