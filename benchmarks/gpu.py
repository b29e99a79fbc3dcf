"""One GPU, in minutes: random models of four large models' shapes in NF4, and the default artifact.

    python -m benchmarks.gpu                                 # or: make bench-gpu
    python -m benchmarks.gpu --device cpu --layers 2 --quick # the same script without a GPU, to try it

For each model: the time to make it, a training step as the model's configuration has it, a fit of 64 rows, answers as
a server's device runs them (latency, throughput, Laplace over MAP), the memory of all that, and the share of the card
that it takes. The figures go to results.json and RESULTS.md under the GPU's name; those of ``--quick``, of fewer layers
or of a CPU are left in runs/bench-quick.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import provenance
from benchmarks.harness.allocation import peak_bytes
from benchmarks.harness.architectures import architecture
from benchmarks.harness.random_models import random_model
from benchmarks.harness.record import FOLDER, Conditions, Record, conditions_here, keep
from benchmarks.harness.shapes import held_bytes
from benchmarks.harness.subject import load_subject, random_batch, with_classes
from benchmarks.harness.timing import exactly, in_turns, ratio, spread
from benchmarks.speed.parts.fit import with_posterior
from laplora.errors import ModelError
from laplora.models.base import resolve_device
from laplora.predictive.batch_outputs import AdaptedModel, batch_outputs
from training.config import RunConfig, load_config
from training.workspace.targets import target_loss

GIB = 2**30
LAYERS = 32
#: The names of the models, and the configurations whose base, targets and batches they have.
MODELS = {
    "Llama-2-7B": "winogrande-s-llama2-7b",
    "Llama-3-8B": "winogrande-s-llama3-8b",
    "Phi-2": "winogrande-s-phi2",
    "Phi-3-mini-128k": "winogrande-s-phi3-mini-128k",
}
CONFIGS = provenance.ROOT / "training" / "configs"


@dataclass(frozen=True)
class Sizes:
    """How much is run.

    Attributes:
        tokens: of every row.
        rows: of the batches whose throughput is measured; four classes, memory and the fit are at the first of them.
        answers: whose latencies are measured; ``turns``: of each comparison; ``steps``: of training, after the first.
    """

    tokens: int
    rows: tuple[int, ...]
    fit_rows: int
    answers: int
    turns: int
    steps: int


FULL = Sizes(64, (8, 32), 64, answers=50, turns=5, steps=5)
QUICK = Sizes(16, (2, 4), 4, answers=3, turns=2, steps=1)


@dataclass(frozen=True)
class Subject:
    """A measured model: a model with a posterior; ``title`` begins the records' names.

    ``held_bytes`` is what its weights take. ``fit_bytes`` and ``fit_s`` are those of its posterior, above the weights.
    """

    title: str
    adapted: AdaptedModel
    conditions: Conditions
    sizes: Sizes
    held_bytes: int
    fit_bytes: int
    fit_s: float

    @property
    def device(self) -> str:
        return str(next(self.adapted.model.parameters()).device)

    def record(self, name: str, *rest: Any, **target: Any) -> Record:
        return self.conditions.record(f"{self.title}: {name}", *rest, **target)

    def functions(self, rows: int, classes: int = 2) -> dict[str, Callable[[], Any]]:
        """Return a MAP and a Laplace answer to a batch; rows have no padding."""
        adapted = self.adapted
        if classes != adapted.readout.class_count:  # an adapted lm_head has as many rows as there are labels
            adapted = with_classes(adapted, classes)
            adapted = with_posterior(adapted, [random_batch(adapted, 2, 16)])
        batch = random_batch(adapted, rows, self.sizes.tokens)
        return {
            "MAP": lambda: batch_outputs(adapted, batch, covariance=False),
            "Laplace": lambda: batch_outputs(adapted, batch, covariance=True),
        }


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", help="a device instead of the first CUDA one")
    parser.add_argument("--layers", type=int, default=LAYERS, help=f"of each random model (default: {LAYERS}, all)")
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
    whole = device.type == "cuda" and options.layers == LAYERS and not options.quick
    out = options.out or (FOLDER if whole else provenance.SCRATCH)
    records = measured(device, options.layers, QUICK if options.quick else FULL, conditions)
    for record in keep(records, out):
        print(record.line, flush=True)
    return 0


def measured(device: torch.device, layers: int, sizes: Sizes, conditions: Conditions) -> Iterator[Record]:
    for model, file in MODELS.items():
        config = load_config(CONFIGS / f"{file}.yaml")
        settings = architecture(config.base.model, num_hidden_layers=layers)
        started = time.perf_counter()
        adapted = random_model(settings, device=str(device), quantization="nf4", targets=config.adapter.targets)
        seconds = time.perf_counter() - started
        subject = fitted(f"gpu, {model}'s shape, {layers} layers, NF4", adapted, conditions, sizes)
        yield subject.record("time to make it, on the device", exactly(seconds), "seconds")
        yield from training(subject, config)
        yield from subject_records(subject)
        del adapted, subject
        free(device)
    adapted = load_subject("nf4", str(device))
    yield from subject_records(fitted("gpu, default artifact, NF4", adapted, conditions, sizes))


def free(device: torch.device) -> None:
    """Give back what the last model took."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def fitted(title: str, adapted: AdaptedModel, conditions: Conditions, sizes: Sizes) -> Subject:
    """Return the subject with a joint core over the whole adapter."""
    device = str(next(adapted.model.parameters()).device)
    made: list[AdaptedModel] = []
    batches = [random_batch(adapted, sizes.rows[0], sizes.tokens)] * (sizes.fit_rows // sizes.rows[0])
    with_posterior(adapted, batches[:1])  # the first Jacobians of a model compare two ways
    started = time.perf_counter()
    peak = peak_bytes(lambda: made.append(with_posterior(adapted, batches)), device)
    seconds = time.perf_counter() - started
    return Subject(title, made[0], conditions, sizes, held_bytes(adapted.model), peak, seconds)


def training(subject: Subject, config: RunConfig) -> Iterator[Record]:
    """Yield time and memory of a training step, its batch as the configuration has it; the adapter moves."""
    model, readout, rows = subject.adapted.model, subject.adapted.readout, config.optimizer.batch_size
    batch = random_batch(subject.adapted, rows, subject.sizes.tokens)
    labels = torch.zeros(rows, dtype=torch.int64, device=subject.device)
    trained = list(subject.adapted.parameters.values())
    for parameter in trained:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step() -> None:
        loss: Any = target_loss(readout.scores(model, batch).logits, labels, batch.class_mask)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    step()
    times = in_turns({"step": step}, subject.sizes.steps)["step"]
    peak = peak_bytes(step, subject.device)
    moments = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if t.dim())
    for parameter in trained:
        parameter.requires_grad_(False)
    model.eval()
    size = f"{rows} x {subject.sizes.tokens} tokens"
    yield subject.record(f"training step, {size}", spread([1e3 * s for s in times]), "ms")
    yield from memory(subject, f"training step, {size}", peak + moments)


def memory(subject: Subject, what: str, above: int) -> Iterator[Record]:
    """Yield what is held above the weights, and all of it as a share of the card."""
    yield subject.record(f"memory, {what}", exactly(above / GIB), "GiB above the weights")
    if subject.device.startswith("cuda"):
        card = torch.cuda.get_device_properties(subject.device).total_memory
        share = exactly((subject.held_bytes + above) / card)
        yield subject.record(f"memory, {what}, weights included", share, "the card's")


def subject_records(subject: Subject) -> Iterator[Record]:
    """Yield the records of weights, fit and answers."""
    sizes = subject.sizes
    yield subject.record("memory, weights", exactly(subject.held_bytes / GIB), "GiB")
    fit = f"fit of {sizes.fit_rows} rows of {sizes.tokens} tokens, {sizes.rows[0]} a batch"
    yield subject.record(fit, exactly(subject.fit_s), "seconds")
    yield from memory(subject, fit, subject.fit_bytes)
    for rows in (1, *sizes.rows):
        for name, function in subject.functions(rows).items():
            yield from memory(subject, f"{name}, {rows} x {sizes.tokens} tokens", peak_bytes(function, subject.device))
    yield from latency(subject)
    yield from throughput(subject)


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
