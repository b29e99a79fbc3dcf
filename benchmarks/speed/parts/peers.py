"""An answer with its uncertainty: laplora's and other packages'; same weights and rows.

float32, two classes, batches of 4 x 64 tokens without padding. The packages' posteriors are fitted on a few rows:
what an answer costs does not depend on it. Each package differentiates through attention in its own way, and each is
timed with the attention that it is fastest with, which its row names; the forward passes are of torch's fused one.
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from transformers import BatchEncoding

from benchmarks.harness.record import Conditions, Record
from benchmarks.harness.subject import ARTIFACT
from benchmarks.harness.timing import in_turns, ratio
from benchmarks.peers.ours import relative_difference
from benchmarks.peers.subject import Subject, artifact_subject, attentions, lora_parameters, plain_attention
from laplora.artifact.folder import read_artifact
from laplora.artifact.manifest import POSTERIOR
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks
from laplora.models.readout import label_logits, last_hidden
from laplora.posterior.base import block_precisions
from laplora.posterior.file import read_posterior
from laplora.prompts.rows import EncodedRow

ROWS, TOKENS = 4, 64
#: Rank of the package's low-rank factors: that of its own example.
PACKAGE_RANK = 10
#: Width from which its factors are of low rank.
WIDE = 64
FORWARD = "a forward"
Attention = Callable[[], AbstractContextManager[None]]
Answer = Callable[[Attention], torch.Tensor]
#: How far an answer may move with another attention: rounding in float32.
SAME = 1e-2
#: The packages that are timed beside laplora, and laplace-torch's package for curvature.
PACKAGES = ("bayesian-lora", "laplace-torch", "curvlinops-for-pytorch")


def run(conditions: Conditions, *, quick: bool) -> Iterator[Record]:
    """Yield each method's time over a plain forward pass, and over laplora's."""
    absent = missing()
    conditions = conditions.with_versions(*PACKAGES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        functions = methods(absent)
        times = in_turns(functions, 3 if quick else 5)
    for name in functions:
        if name != FORWARD:
            limit = 2.2 if name == "laplora" else None
            yield conditions.record(f"peers: {name}", ratio(times, name, FORWARD), FORWARD, limit=limit)
    for name in functions:
        if name not in (FORWARD, "laplora"):
            limit = 6.0 if name.startswith("bayesian-lora") else 1.0
            against = ratio(times, name, "laplora")
            yield conditions.record(f"peers: {name}, against laplora", against, "laplora", limit=limit, side="at least")


def missing() -> list[str]:
    """Return which of the packages are not installed, and say so."""
    absent = [name for name in ("bayesian_lora", "laplace") if importlib.util.find_spec(name) is None]
    if absent:
        print(f"{' and '.join(absent)} not installed: pip install -c constraints.txt -e '.[peers]'", flush=True)
    return absent


def methods(absent: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """Return what is timed, by name."""
    subject = even_rows(artifact_subject(train=8, test=ROWS))
    functions: dict[str, Callable[[], Any]] = {FORWARD: plain_forward(subject), "laplora": laplora(subject)}
    answers: dict[str, Answer] = {}
    if "bayesian_lora" not in absent:
        answers["bayesian-lora"] = bayesian_lora(subject)
    if "laplace" not in absent:
        answers |= {f"laplace-torch, {name}": laplace_torch(subject, name) for name in ("diagonal", "kfac_expand")}
    for package, answer in answers.items():
        attention, function = fastest(subject, answer)
        functions[f"{package} ({attention})"] = function
    return functions


def fastest(subject: Subject, answer: Answer) -> tuple[str, Callable[[], torch.Tensor]]:
    """Return the attention with which a package answers fastest, and that answer."""
    seconds: dict[str, float] = {}
    ways = attentions(subject.model)
    known: torch.Tensor | None = None
    for name, attention in ways.items():
        try:
            value = answer(attention)
            known = value if known is None else known
            if relative_difference(value, known) <= SAME:
                begun = time.perf_counter()
                answer(attention)
                seconds[name] = time.perf_counter() - begun
        except (RuntimeError, NotImplementedError, TypeError) as error:
            print(f"without {name}: {type(error).__name__}", flush=True)
    best = min(seconds, key=lambda name: seconds[name])
    return best, lambda: answer(ways[best])


def even_rows(subject: Subject) -> Subject:
    """Return the subject with random rows of one length, of the first two of its labels."""
    generator, two = torch.Generator().manual_seed(0), subject.label_ids[:2]

    def drawn(rows: tuple[EncodedRow, ...]) -> tuple[EncodedRow, ...]:
        ids = torch.randint(200, 40000, (len(rows), TOKENS), generator=generator).tolist()
        return tuple(EncodedRow(tuple(row), 2) for row in ids)

    labels, train, test = subject.train_labels % 2, drawn(subject.train), drawn(subject.test)
    return replace(subject, label_ids=two, train_labels=labels, train=train, test=test)


def plain_forward(subject: Subject) -> Callable[[], torch.Tensor]:
    batch = subject.batch(subject.test)

    @torch.no_grad()
    def forward() -> torch.Tensor:
        return label_logits(subject.model, last_hidden(subject.model, batch), subject.label_ids)

    return forward


def laplora(subject: Subject) -> Callable[[], torch.Tensor]:
    """Return this library's logits and covariance, with the default artifact's posterior."""
    posterior = read_posterior(ARTIFACT / POSTERIOR, find_blocks(subject.model, 2)).to("cpu", torch.float32)
    precisions = block_precisions(read_artifact(ARTIFACT).manifest.prior.prior(), posterior.blocks)
    batch = subject.batch(subject.test)

    def answer() -> torch.Tensor:
        jacobians = contrast_jacobians(subject.model, batch, subject.label_ids, posterior.blocks, sums=False)
        return posterior.covariance_of(jacobians, precisions)

    return answer


def bayesian_lora(subject: Subject) -> Answer:
    """Return the package's ``jacobian_mean`` and ``variance``, as its example calls them.

    It needs an ``output_callback`` (without one ``jacobian_mean`` reads a global that it does not define).
    """
    from bayesian_lora import calculate_kronecker_factors, cholesky_decompose_small_factors
    from bayesian_lora.main import jacobian_mean, variance

    def inputs_of(rows: Sequence[EncodedRow]) -> BatchEncoding:
        batch = subject.batch(rows)
        return BatchEncoding({"input_ids": batch.input_ids, "attention_mask": batch.attention_mask})

    def logits_of(output: Any) -> torch.Tensor:
        logits: torch.Tensor = output.logits[:, -1, list(subject.label_ids)]
        return logits

    rank = min(min(p.shape) for p in lora_parameters(subject.model).values())
    inputs, scale = inputs_of(subject.test), torch.tensor(0.1)
    with plain_attention():
        logits, rows = lambda model, batch: logits_of(model(**batch)), [inputs_of(subject.train)]
        factors = calculate_kronecker_factors(subject.model, logits, rows, PACKAGE_RANK, WIDE, ["lora"])
    subject.model.zero_grad()
    subject.model.eval()
    factors = cholesky_decompose_small_factors(factors, WIDE, "cpu", torch.float32)

    def answer(attention: Attention) -> torch.Tensor:
        with attention(), torch.no_grad():
            jacobian, _ = jacobian_mean(subject.model, inputs, output_callback=logits_of)
        covariance: torch.Tensor = variance(inputs, jacobian, factors, scale, 2, rank, PACKAGE_RANK, "cpu")
        return covariance

    return answer


def laplace_torch(subject: Subject, structure: str) -> Answer:
    """Return laplace-torch's probabilities by its linearised (``glm``) predictive."""
    from benchmarks.peers.laplace_torch_calls import fit_laplace, mapping, quiet

    with quiet():
        posterior = fit_laplace(subject, structure, 80.0, size=4)
    data = mapping(subject, subject.test)

    def answer(attention: Attention) -> torch.Tensor:
        with quiet(attention):
            probs: torch.Tensor = posterior(data, pred_type="glm", link_approx="probit")
        return probs

    return answer
