"""Random models of four large models' shapes, in NF4 and in bfloat16, on one device.

For each: the time to make it, a training step as the model's configuration has it, a fit of 64 rows, MAP and Laplace
answers, and the memory of all that, beside what docs/models.md counted without a card.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch

from benchmarks.gpu.steps import SkipStep
from benchmarks.harness.allocation import peak_bytes
from benchmarks.harness.architectures import ARCHITECTURES, architecture
from benchmarks.harness.provenance import ROOT
from benchmarks.harness.random_models import random_model
from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.shapes import held_bytes, shape_model
from benchmarks.harness.subject import random_batch
from benchmarks.harness.timing import exactly, in_turns, ratio, spread
from benchmarks.speed.parts.fit import with_posterior
from laplora.predictive.batch_outputs import AdaptedModel, batch_outputs
from training.config import RunConfig, load_config
from training.workspace.targets import target_loss

Quantization = Literal["nf4", "none"]
GIB, GB = 2**30, 1e9
LAYERS = 32
#: The names of the models, and the configurations whose base, targets and batches they have.
MODELS = {
    "Llama-2-7B": "winogrande-s-llama2-7b",
    "Llama-3-8B": "winogrande-s-llama3-8b",
    "Phi-2": "winogrande-s-phi2",
    "Phi-3-mini-128k": "winogrande-s-phi3-mini-128k",
}
FORMATS: dict[str, Quantization] = {"NF4": "nf4", "bfloat16": "none"}
#: The page whose table counts memory, for 32 layers in NF4.
COUNTS = ROOT / "docs" / "models.md"


class Sizes(NamedTuple):
    """Tokens of a row, rows of the batches (the fit is at the first), and how often each is run.

    ``answered`` are rows and tokens of the batches of answers whose memory is measured; docs/models.md counts the last.
    """

    tokens: int
    rows: tuple[int, ...]
    answered: tuple[tuple[int, int], ...]
    fit_rows: int
    answers: int
    turns: int
    steps: int


COUNTED = (4, 512)
FULL = Sizes(64, (8, 32), ((1, 64), (8, 64), (32, 64), COUNTED), 64, answers=50, turns=5, steps=5)
QUICK = Sizes(16, (2,), ((1, 16), (2, 16), (1, 32)), 4, answers=3, turns=2, steps=1)
#: These are divided by 16 with quick sizes.
WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


class Count(NamedTuple):
    """Bytes that docs/models.md counts: the weights, and what each takes above them; answers are to ``COUNTED``."""

    weights: float
    training: float
    fit: float
    answers: float


@dataclass(frozen=True)
class Subject:
    """A measured model; ``title`` begins the records' names, ``count`` is beside the measured memory."""

    title: str
    adapted: AdaptedModel
    conditions: Conditions
    sizes: Sizes
    count: Count | None

    @property
    def device(self) -> str:
        return str(next(self.adapted.model.parameters()).device)

    def record(self, name: str, *rest: Any, **target: Any) -> Record:
        return self.conditions.record(f"{self.title}: {name}", *rest, **target)

    def functions(self, rows: int, tokens: int) -> dict[str, Callable[[], Any]]:
        """Return a MAP and a Laplace answer to a batch of two classes; rows have no padding."""
        batch = random_batch(self.adapted, rows, tokens)
        return {
            "MAP": lambda: batch_outputs(self.adapted, batch, covariance=False),
            "Laplace": lambda: batch_outputs(self.adapted, batch, covariance=True),
        }


def counted(model: str) -> Count:
    """Return the row of a model in the table of docs/models.md."""
    row = re.search(rf"^\| {re.escape(model)} \|([\d. |]+)\|$", COUNTS.read_text(encoding="utf-8"), re.MULTILINE)
    assert row is not None, f"docs/models.md counts no memory of {model}"
    weights, _, training, _, fit, _, answers, *_ = (GB * float(cell) for cell in row[1].split("|"))
    return Count(weights, training, fit, answers)


def fitting(sizes: Sizes, count: Count, free: float) -> Sizes:
    """Return the sizes that fit so many free bytes, less 1 GiB for CUDA and a tenth for gaps.

    Raises:
        SkipStep: not even a training step and a fit do.
    """
    usable = 0.9 * (free - GIB)
    if (least := count.weights + max(count.training, count.fit)) > usable:
        raise SkipStep(f"it takes {least / GB:.1f} GB, of which {usable / GB:.1f} may be used on this card")
    if count.weights + count.answers <= usable:
        return sizes
    return sizes._replace(rows=sizes.rows[:1], answered=sizes.answered[:2])


def measured(
    model: str, number_format: str, device: str, layers: int, sizes: Sizes, conditions: Conditions
) -> Iterator[Record]:
    """Yield the records of a model in a format; raise SkipStep if the device does not hold it."""
    config = load_config(ROOT / "training" / "configs" / f"{MODELS[model]}.yaml")
    quantization, targets = FORMATS[number_format], config.adapter.targets
    changes = {name: ARCHITECTURES[config.base.model][name] // 16 or 1 for name in WIDTHS if sizes is QUICK}
    settings = architecture(config.base.model, num_hidden_layers=layers, **changes)
    count = counted(model) if layers == LAYERS and not changes else None
    if count is not None and quantization == "none":
        shape = shape_model(settings, quantization="none", dtype=torch.bfloat16, rank=8, targets=targets)
        count = count._replace(weights=held_bytes(shape))
    if count is not None and device.startswith("cuda"):
        sizes = fitting(sizes, count, torch.cuda.mem_get_info(device)[0])
    title = f"gpu, {model}'s shape, {layers} layers, {number_format}"
    started = time.perf_counter()
    adapted = random_model(settings, device=device, quantization=quantization, targets=targets)
    made = exactly(time.perf_counter() - started)
    # Without the packed weights that a pass expands, less is held than the page counts.
    subject = Subject(title, adapted, conditions, sizes, count if quantization == "nf4" else None)
    yield subject.record("time to make it, on the device", made, "seconds")
    yield subject.record("memory, weights", exactly(held_bytes(adapted.model) / GIB), "GiB")
    yield from training(subject, config)
    yield from fit_and_answers(subject)


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
    yield from memory(subject, f"training step, {size}", peak + moments, subject.count and subject.count.training)


def memory(subject: Subject, what: str, above: int, count: float | None) -> Iterator[Record]:
    """Yield what is held above the weights, and its ratio to the count."""
    yield subject.record(f"memory, {what}", exactly(above / GIB), "GiB above the weights")
    if count:
        yield subject.record(f"memory, {what}, over the count", exactly(above / count), "the count of docs/models.md")


def fit_and_answers(subject: Subject) -> Iterator[Record]:
    """Yield the records of a fit with a joint core over the whole adapter, and of answers."""
    sizes, adapted = subject.sizes, subject.adapted
    made: list[AdaptedModel] = []
    batches = [random_batch(adapted, sizes.rows[0], sizes.tokens)] * (sizes.fit_rows // sizes.rows[0])
    with_posterior(adapted, batches[:1])  # the first Jacobians of a model compare two ways
    started = time.perf_counter()
    peak = peak_bytes(lambda: made.append(with_posterior(adapted, batches)), subject.device)
    fit = f"fit of {sizes.fit_rows} rows of {sizes.tokens} tokens, {sizes.rows[0]} a batch"
    yield subject.record(fit, exactly(time.perf_counter() - started), "seconds")
    yield from memory(subject, fit, peak, subject.count and subject.count.fit)
    subject = replace(subject, adapted=made.pop())
    for rows, tokens in sizes.answered:
        for name, function in subject.functions(rows, tokens).items():
            is_counted = (name, rows, tokens) == ("Laplace", *COUNTED)
            peak, count = peak_bytes(function, subject.device), subject.count and subject.count.answers
            yield from memory(subject, f"{name}, {rows} x {tokens} tokens", peak, count if is_counted else None)
    times = in_turns(subject.functions(1, sizes.tokens), sizes.answers)
    yield from latencies(subject.record, times, f"1 x {sizes.tokens} tokens")
    yield from throughput(subject)


def latencies(record: Callable[..., Record], times: dict[str, list[float]], size: str) -> Iterator[Record]:
    """Yield median and 99th percentile of answers' seconds by name, in ms."""
    for name, seconds in times.items():
        late = sorted(seconds)[min(len(seconds) - 1, int(0.99 * len(seconds)))]
        yield record(f"latency, {name}, {size}, median", spread([1e3 * s for s in seconds]), "ms")
        yield record(f"latency, {name}, {size}, 99th percentile", exactly(1e3 * late), "ms")


def throughput(subject: Subject) -> Iterator[Record]:
    """Yield rows a second, and Laplace over MAP with the target that it has on a CPU, by batch."""
    for rows in subject.sizes.rows:
        times = in_turns(subject.functions(rows, subject.sizes.tokens), subject.sizes.turns)
        size, limit = f"{rows} x {subject.sizes.tokens} tokens", 2.2 if rows >= 8 else None
        yield subject.record(f"2 classes, {size}", ratio(times, "Laplace", "MAP"), "a MAP answer", limit=limit)
        for name, seconds in times.items():
            per_second = spread([rows / s for s in seconds])
            yield subject.record(f"throughput, {name}, {size}", per_second, "rows a second")
