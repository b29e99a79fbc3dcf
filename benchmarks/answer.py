"""Cost and drift of an answer of the default artifact: ``python -m benchmarks.answer``.

Interleaved medians with their range. To see another instruction set: ``ONEDNN_MAX_CPU_ISA=AVX2`` before it.
"""

from __future__ import annotations

import json
import statistics
from typing import Literal

import torch

from benchmarks.speed.subject import ARTIFACT
from benchmarks.speed.timing import in_turns, ratio
from laplora.models.readout import last_hidden
from laplora.predictor import Predictor
from laplora.prompts.templates import Batch

TEXT = "the plot makes no sense at all , and the two leads have nothing to say to each other for two hours ."
TURNS = 7
MODES: tuple[Literal["map", "laplace"], ...] = ("map", "laplace")


def show(title: str, times: dict[str, list[float]]) -> None:
    """Print medians, ranges, and ratios to the first."""
    first = next(iter(times))
    for name, seconds in times.items():
        values = [1000 * s for s in seconds]
        spread = f"{statistics.median(values):.0f} ms ({min(values):.0f} to {max(values):.0f})"
        print(f"{title}, {name}: {spread}, {ratio(times, name, first).value:.2f} times")


def drift(predictor: Predictor) -> float:
    """Return the largest difference of a probability from the artifact's recorded answers."""
    golden = json.loads((ARTIFACT / "golden.json").read_text(encoding="utf-8"))["answers"]
    answers = predictor.predict([predictor.encode(entry["inputs"], truncate=True) for entry in golden])
    pairs = [
        (g, w)
        for answer, entry in zip(answers, golden, strict=True)
        for name in ("map_probs", "probs")
        for g, w in zip(getattr(answer, name), entry[name], strict=True)
    ]
    return max(abs(got - wanted) for got, wanted in pairs)


def main() -> None:
    """Print cost of MAP and Laplace, of packed and expanded 4-bit weights, and the drift of golden answers."""
    loaded = {
        "expanded": Predictor.load(ARTIFACT, dequantize=True, verify_golden=False),
        "packed": Predictor.load(ARTIFACT, dequantize=False, verify_golden=False),
    }
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    for size in (1, 8):
        rows = [loaded["expanded"].encode({"text": TEXT}, truncate=False)] * size
        modes = {mode: lambda mode=mode, rows=rows: loaded["expanded"].predict(rows, mode) for mode in MODES}
        show(f"{size} x {len(rows[0].token_ids)} tokens", in_turns(modes, TURNS))
    ids = torch.randint(5, 40000, (6, 64), generator=torch.Generator().manual_seed(0))
    ones = torch.ones_like(ids)
    batch = Batch(ids, ones, ones.cumsum(1) - 1, torch.ones(6, 2, dtype=torch.bool))

    def forward(predictor: Predictor) -> None:
        with torch.no_grad():
            last_hidden(predictor._members.model, batch)

    show("forward, 6 x 64", in_turns({name: lambda p=p: forward(p) for name, p in loaded.items()}, TURNS))
    for name, predictor in loaded.items():
        print(f"golden answers, {name}: largest difference {drift(predictor):.3f}")


if __name__ == "__main__":
    main()
