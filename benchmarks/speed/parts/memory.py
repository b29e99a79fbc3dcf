"""Peak memory of an answer and of a fit beside other packages', above the loaded model; and the posterior's own size.

An answer as in the ``peers`` part: float32, two classes, 4 x 64 tokens. A fit takes rows of that length, 8 at a time.
An answer is measured at its second run: what it keeps for later ones is there already. Other packages run with
torch's attention as plain products, which all can differentiate (the fused one takes bayesian-lora 652 MB, not 674).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.estimate.sizes import posterior_bytes
from benchmarks.harness.allocation import peak_bytes
from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.timing import exactly
from benchmarks.peers.subject import Subject, artifact_subject, plain_attention
from benchmarks.speed.parts import peers
from benchmarks.speed.parts.fit import STRUCTURES, fit
from benchmarks.speed.parts.large import file_bytes
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.base import Posterior
from laplora.posterior.passes import StructureSettings
from laplora.predictive.batch_outputs import AdaptedModel, batch_outputs
from laplora.readouts.label_tokens import LabelTokens

UNIT = "MB above the loaded model"
FEW, MANY, BATCH = 16, 64, 8


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield megabytes of answers and fits, and what they must not grow with."""
    absent = peers.missing()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = peers.even_rows(artifact_subject(train=MANY, test=peers.ROWS))
        yield from answers(conditions, subject, absent)
        yield from fits(conditions, subject, absent)


def answers(conditions: Conditions, subject: Subject, absent: Sequence[str]) -> Iterator[Record]:
    """Yield what one answer takes: a forward pass, laplora's and other packages'."""
    posterior, precisions = peers.served(subject)
    adapted = AdaptedModel(subject.model, {}, LabelTokens(subject.label_ids), posterior, precisions)
    batch = subject.batch(subject.test)
    few = replace(subject, train=subject.train[:BATCH], train_labels=subject.train_labels[:BATCH])
    functions: dict[str, Callable[[], Any]] = {
        peers.FORWARD: peers.plain_forward(subject),
        "laplora": lambda: batch_outputs(adapted, batch, covariance=True),
    }
    if "bayesian_lora" not in absent:
        functions["bayesian-lora"] = partial(peers.bayesian_lora(few), plain_attention)
    if "laplace" not in absent:
        functions["laplace-torch, diagonal"] = partial(peers.laplace_torch(few, "diagonal"), plain_attention)
    for function in functions.values():
        function()
    peaks = {name: peak_bytes(function) for name, function in functions.items()}
    for name, size in peaks.items():
        yield conditions.record(f"memory: {name}", exactly(size / 1e6), UNIT)
    for name in list(functions)[2:]:
        share = exactly(peaks["laplora"] / peaks[name])
        yield conditions.record(f"memory: laplora, against {name}", share, f"{name}'s", limit=1 / 3)


def fits(conditions: Conditions, subject: Subject, absent: Sequence[str]) -> Iterator[Record]:
    """Yield what a fit takes, and how much more of it for four times the rows; and its posterior's file."""
    blocks = find_blocks(subject.model, 2)
    adapter = 4 * sum(b.wide * b.narrow for b in blocks)
    adapted = AdaptedModel(subject.model, {}, LabelTokens(subject.label_ids))
    default = StructureSettings()
    for structure in STRUCTURES:
        made: dict[int, Posterior] = {}

        def one(rows: int, structure: str = structure, made: dict[int, Posterior] = made) -> None:
            batches = list(subject.batches(subject.train[:rows], BATCH))
            made[rows] = fit(adapted, blocks, batches, structure)

        peak_few, peak_many = (peak_bytes(partial(one, rows)) for rows in (FEW, MANY))
        few, many = (file_bytes(made[rows]) for rows in (FEW, MANY))
        formula = posterior_bytes(blocks, structure, rank=default.rank, joint_rank=default.joint_rank)
        both = f"with {FEW} rows, with {MANY}"
        for name, value, to, arithmetic in (
            (f"fit, {structure}, {MANY} rows", peak_many / 1e6, UNIT, None),
            (f"fit, {structure}", peak_many / peak_few, both, 1.01),
            (f"file, {structure}", many / adapter, "the adapter in float32", None),
            (f"file, {structure}, rows", many / few, both, 1.0),
            (f"file, {structure}, formula", many / formula, "k d in every block", None),
        ):
            yield conditions.record(f"memory: {name}", exactly(value), to, arithmetic=arithmetic)
    if "bayesian_lora" not in absent:
        size = peak_bytes(peers.bayesian_lora_fit(subject, BATCH))
        yield conditions.record(f"memory: fit, bayesian-lora, {MANY} rows", exactly(size / 1e6), UNIT)
