"""What is to be measured, by the command that measures it, so that the page counts what is not there.

A record has the name given here, or that name, a comma and more (how many cores, say).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

#: Names of all figures with a target that was set.
TARGETS: Mapping[str, tuple[str, ...]] = {
    "python -m benchmarks.speed --only predict": (
        "predict: bfloat16, 2 classes, 8 x 32 tokens",
        "predict: bfloat16, 2 classes, 8 x 64 tokens",
        "predict: bfloat16, 2 classes, 8 x 128 tokens",
        "predict: bfloat16, 2 classes, 8 x 256 tokens",
        "predict: bfloat16, 2 classes, 32 x 32 tokens",
        "predict: bfloat16, 2 classes, 32 x 64 tokens",
        "predict: bfloat16, 2 classes, 32 x 128 tokens",
        "predict: bfloat16, 2 classes, 32 x 256 tokens",
        "predict: bfloat16, 4 classes, 8 x 64 tokens",
        "predict: bfloat16, 5 classes, 8 x 64 tokens",
        "predict: bfloat16, 10 classes, 8 x 64 tokens",
        "predict: float32, 2 classes, 8 x 32 tokens",
        "predict: float32, 2 classes, 8 x 128 tokens",
        "predict: nf4, 2 classes, 8 x 32 tokens",
        "predict: nf4, 2 classes, 8 x 128 tokens",
        "predict: nf4, 4 classes, 8 x 32 tokens",
        "predict: nf4, 10 classes, 8 x 32 tokens",
    ),
    "python -m benchmarks.speed --only fast": (
        "fast: covariance, 1 x 64 tokens",
        "fast: covariance, 8 x 32 tokens",
        "fast: covariance, 8 x 64 tokens",
        "fast: covariance, 32 x 64 tokens",
        "fast: NLL alone",
    ),
    "python -m benchmarks.speed --only peers": (
        "peers: laplora",
        "peers: bayesian-lora, against laplora",
        "peers: laplace-torch, diagonal, against laplora",
        "peers: laplace-torch, kfac_expand, against laplora",
        "peers: MC dropout, 10 samples, against laplora",
    ),
    "python -m benchmarks.speed --only fit": (
        "fit: joint_core, batches of 1",
        "fit: ekfac, batches of 1",
        "fit: joint_core, batches of 8",
        "fit: ekfac, batches of 8",
        "fit: joint_core, batches of 32",
        "fit: ekfac, batches of 32",
        "fit: prior by evidence",
        "fit: prior by evidence by group",
        "fit: prior by validation",
    ),
    "python -m benchmarks.speed --only memory": (
        "memory: laplora, against bayesian-lora",
        "memory: laplora, against laplace-torch, diagonal",
    ),
    "python -m benchmarks.speed --only large": (
        "large: file, joint_core, layers: from 2 and 4",
        "large: file, ekfac of rank 10, layers: from 2 and 4",
        "large: file, joint_core, layers: all",
        "large: file, ekfac of rank 10, layers: all",
    ),
    "python -m benchmarks.speed --only mixed": (
        "mixed lengths: padding",
        "mixed lengths: throughput",
    ),
    "python -m benchmarks.speed --only server": (
        "server: overhead of one request",
        "server: throughput, 32 clients",
    ),
    "python -m benchmarks.speed --only overload": (
        "overload: goodput, clients on the server's cores",
        "overload: 99th percentile of the answered, clients on the server's cores",
        "overload: 95th percentile of the refusals, clients on the server's cores",
        "overload: answered otherwise, refused without a time or in vain, clients on the server's cores",
        "overload: goodput, clients on a core of their own",
        "overload: 99th percentile of the answered, clients on a core of their own",
        "overload: 95th percentile of the refusals, clients on a core of their own",
        "overload: answered otherwise, refused without a time or in vain, clients on a core of their own",
    ),
    "python -m benchmarks.speed --only start": (
        "start: process to ready",
        "start: artifact",
    ),
    "python -m benchmarks.gpu": (
        "gpu, Llama-2-7B's shape, 32 layers, NF4: 2 classes, 8 x 64 tokens",
        "gpu, Llama-2-7B's shape, 32 layers, NF4: 2 classes, 32 x 64 tokens",
        "gpu, Llama-2-7B's shape, 32 layers, NF4: 4 classes, 8 x 64 tokens",
        "gpu, default artifact, NF4: 2 classes, 8 x 64 tokens",
        "gpu, default artifact, NF4: 2 classes, 32 x 64 tokens",
        "gpu, default artifact, NF4: 4 classes, 8 x 64 tokens",
    ),
}
#: Names of the figures without a target that a sentence of docs/evidence.md goes by (``benchmarks.published``).
FIGURES: Mapping[str, tuple[str, ...]] = {
    "python -m benchmarks.speed --only fast": (
        "fast: fast as served, 32 clients",
        "fast: fast as served, one client",
        "fast: handed over",
    ),
}


def is_named(record: str, expected: str) -> bool:
    """Return whether a record's name is the expected one, or that and more."""
    return record == expected or record.startswith(f"{expected},")


def missing(expected: Mapping[str, tuple[str, ...]], records: Iterable[str]) -> dict[str, list[str]]:
    """Return by command the names that no record has; commands that have all are left out."""
    there = list(records)
    left = {c: [n for n in names if not any(is_named(r, n) for r in there)] for c, names in expected.items()}
    return {command: names for command, names in left.items() if names}
