"""Speed on one GPU, in minutes: a random model of Llama-2-7B's shape in NF4, and the default artifact.

    python -m benchmarks.gpu                                 # or: make bench-gpu
    python -m benchmarks.gpu --device cpu --layers 2 --quick # the same script without a GPU, to try it

Latency, throughput, Laplace over MAP and peak memory. The figures go to results.json and RESULTS.md under the GPU's
name; those of ``--quick``, of fewer layers or of a CPU are not published, but left in runs/bench-quick.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import provenance
from benchmarks.harness.llama7b import LLAMA_2_7B, random_llama
from benchmarks.harness.record import FOLDER, Conditions, Record, conditions_here, keep
from benchmarks.harness.subject import load_subject, random_batch, with_classes
from benchmarks.harness.timing import Ratio, exactly, in_turns, ratio
from benchmarks.speed.parts.subset import with_posterior
from laplora.errors import ModelError
from laplora.models.base import resolve_device
from laplora.predictive.member_outputs import MemberSet, member_outputs

GIB = 2**30


@dataclass(frozen=True)
class Sizes:
    """How much is run.

    Attributes:
        tokens: of every row.
        rows: of the batches whose throughput is measured; four classes, memory and the fit are at the first of them.
        answers: whose latencies are measured; ``turns``: of each comparison.
    """

    tokens: int
    rows: tuple[int, ...]
    fit_rows: int
    answers: int
    turns: int


FULL = Sizes(64, (8, 32), 32, answers=100, turns=7)
QUICK = Sizes(16, (2, 4), 4, answers=5, turns=2)


@dataclass(frozen=True)
class Subject:
    """What is measured: members with a posterior; ``title`` begins the records' names."""

    title: str
    members: MemberSet
    conditions: Conditions
    sizes: Sizes

    def record(self, name: str, *rest: Any, **target: Any) -> Record:
        """Return a figure of this subject."""
        return self.conditions.record(f"{self.title}: {name}", *rest, **target)

    def functions(self, rows: int, classes: int = 2) -> dict[str, Callable[[], Any]]:
        """Return a MAP and a Laplace answer to a batch; rows have no padding."""
        members = with_classes(self.members, classes)
        batch = random_batch(members, rows, self.sizes.tokens)
        return {
            "MAP": lambda: member_outputs(members, batch, ()),
            "Laplace": lambda: member_outputs(members, batch, {("single", True)}),
        }


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", help="a device instead of the first CUDA one")
    parser.add_argument("--layers", type=int, default=32, help="of the random Llama (default: 32, as it has)")
    parser.add_argument("--quick", action="store_true", help="few rows, short ones and few turns: to try the script")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of results.json and RESULTS.md (default: this one, or runs/bench-quick)",
    )
    options = parser.parse_args(arguments)
    if options.device is None and not torch.cuda.is_available():
        print(
            "benchmarks.gpu: no CUDA device is there, and these are a GPU's figures; to try the script without one: "
            "--device cpu --layers 2 --quick",
            file=sys.stderr,
        )
        return 2
    try:
        device = resolve_device(options.device or "cuda")
    except ModelError as error:
        print(f"benchmarks.gpu: {error}", file=sys.stderr)
        return 2
    given = sys.argv[1:] if arguments is None else arguments
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else provenance.hardware()
    conditions = conditions_here(given, module="benchmarks.gpu", hardware=name)
    whole = device.type == "cuda" and options.layers == 32 and not options.quick
    out = options.out or (FOLDER if whole else provenance.SCRATCH)
    for record in keep(measured(device, options.layers, QUICK if options.quick else FULL, conditions), out):
        print(record.line, flush=True)
    return 0


def measured(device: torch.device, layers: int, sizes: Sizes, conditions: Conditions) -> Iterator[Record]:
    """Yield the records."""
    loads = {
        f"gpu, Llama-2-7B's shape, {layers} layers, NF4": lambda: random_llama(
            layers, device=str(device), quantization="nf4", shape=LLAMA_2_7B
        ),
        "gpu, default artifact, NF4": lambda: load_subject("nf4", str(device)),
    }
    for title, load in loads.items():
        members, peak = fitted(load(), sizes)
        subject = Subject(title, members, conditions, sizes)
        if peak is not None:
            size = f"{sizes.fit_rows} rows of {sizes.tokens} tokens, {sizes.rows[0]} a batch"
            yield subject.record(f"peak memory, fit of {size}", exactly(peak / GIB), "GiB, weights included")
        for step in (answer_memory, latency, throughput):
            yield from step(subject)
        del members, subject  # before the next model is loaded
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def fitted(members: MemberSet, sizes: Sizes) -> tuple[MemberSet, int | None]:
    """Return the members with a joint core over the whole adapter, and the peak of fitting it."""
    made: list[MemberSet] = []
    batches = [random_batch(members, sizes.rows[0], sizes.tokens)] * (sizes.fit_rows // sizes.rows[0])
    peak = peak_bytes(members, lambda: made.append(with_posterior(members, "all", batches)))
    return made[0], peak


def answer_memory(subject: Subject) -> Iterator[Record]:
    """Yield the peaks of a MAP and a Laplace answer by batch; nothing on a CPU."""
    for rows in (1, *subject.sizes.rows):
        for name, function in subject.functions(rows).items():
            peak = peak_bytes(subject.members, function)
            if peak is not None:
                size = f"{rows} x {subject.sizes.tokens} tokens"
                yield subject.record(f"peak memory, {name}, {size}", exactly(peak / GIB), "GiB, weights included")


def peak_bytes(members: MemberSet, function: Callable[[], Any]) -> int | None:
    """Call a function; return the most bytes of tensors on the GPU meanwhile; None on a CPU."""
    device = next(members.model.parameters()).device
    if device.type != "cuda":
        function()
        return None
    torch.cuda.reset_peak_memory_stats(device)
    function()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device)


def latency(subject: Subject) -> Iterator[Record]:
    """Yield median and 99th percentile of one row's answer."""
    times = in_turns(subject.functions(1), subject.sizes.answers)
    size = f"1 x {subject.sizes.tokens} tokens"
    for name, seconds in times.items():
        late = sorted(seconds)[min(len(seconds) - 1, int(0.99 * len(seconds)))]
        yield subject.record(f"latency, {name}, {size}, median", spread([1e3 * s for s in seconds]), "ms")
        yield subject.record(f"latency, {name}, {size}, 99th percentile", exactly(1e3 * late), "ms")


def throughput(subject: Subject) -> Iterator[Record]:
    """Yield rows a second and Laplace over MAP by batch; of four classes Laplace over MAP alone."""
    sizes = subject.sizes
    for rows in sizes.rows:
        times = in_turns(subject.functions(rows), sizes.turns)
        size = f"{rows} x {sizes.tokens} tokens"
        yield from over_map(subject, times, rows, 2)
        for name, seconds in times.items():
            per_second = spread([rows / s for s in seconds])
            yield subject.record(f"throughput, {name}, {size}", per_second, "rows a second")
    yield from over_map(subject, in_turns(subject.functions(sizes.rows[0], 4), sizes.turns), sizes.rows[0], 4)


def spread(values: Sequence[float]) -> Ratio:
    """Return the median, the least and the most."""
    return Ratio(statistics.median(values), min(values), max(values))


def over_map(subject: Subject, times: dict[str, list[float]], rows: int, classes: int) -> Iterator[Record]:
    """Yield the ratio with the target that it has on a CPU."""
    yield subject.record(
        f"{classes} classes, {rows} x {subject.sizes.tokens} tokens",
        ratio(times, "Laplace", "MAP"),
        "a MAP answer",
        limit=1.1 * classes if rows >= 8 else None,
    )


if __name__ == "__main__":
    sys.exit(main())
