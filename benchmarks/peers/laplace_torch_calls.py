"""laplace-torch called on a subject's rows: the LoRA weights, and nothing else, are trainable."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import BatchEncoding

from benchmarks.peers.subject import Subject, lora_parameters, plain_attention
from laplora.models.readout import label_logits, last_hidden
from laplora.prompts.rows import Batch, EncodedRow

#: laplace-torch's Hessian structure and its options, by name; those of ``against_laplace.PAIRS`` are laplora's names.
HESSIANS: dict[str, tuple[str, dict[str, Any]]] = {
    "diagonal": ("diag", {}),
    "kfac_expand": ("kron", {"asdl_fisher_kwargs": {"kfac_approx": "expand"}}),
    "kfac_reduce": ("kron", {"asdl_fisher_kwargs": {"kfac_approx": "reduce"}}),
    "joint_core": ("full", {}),
}


class ClassLogits(nn.Module):
    """A batch, as a mapping, to class logits (rows, classes): what laplace-torch takes for a model."""

    def __init__(self, model: Any, label_ids: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.label_ids = tuple(label_ids)

    def forward(self, data: Any) -> torch.Tensor:
        ids = data["input_ids"]
        possible = torch.ones(len(ids), len(self.label_ids), dtype=torch.bool)
        batch = Batch(ids, data["attention_mask"], data["position_ids"], possible)
        return label_logits(self.model, last_hidden(self.model, batch), self.label_ids)


def fit_laplace(
    subject: Subject, structure: str, precision: float, *, size: int = 1, prior_mean: torch.Tensor | None = None
) -> Any:
    """Return laplace-torch's posterior of the training rows, ``size`` rows per batch."""
    from laplace import Laplace

    hessian, options = HESSIANS[structure]
    lora_parameters(subject.model)
    if prior_mean is not None:
        options = options | {"prior_mean": prior_mean}
    module = ClassLogits(subject.model, subject.label_ids)
    posterior = Laplace(module, "classification", "all", hessian, prior_precision=precision, **options)
    pairs = list(zip(subject.train, subject.train_labels.tolist(), strict=True))
    posterior.fit(DataLoader(pairs, batch_size=size, collate_fn=lambda p: mapping(subject, *zip(*p, strict=True))))
    return posterior


def mapping(subject: Subject, rows: Sequence[EncodedRow], labels: Sequence[int] | None = None) -> BatchEncoding:
    """Return rows as the mapping that laplace-torch passes to the model."""
    batch = subject.batch(rows)
    data = {key: getattr(batch, key) for key in ("input_ids", "attention_mask", "position_ids")}
    return BatchEncoding(data | ({} if labels is None else {"labels": torch.tensor(labels)}))


def laplace_covariances(subject: Subject, posterior: Any) -> torch.Tensor:
    """Return laplace-torch's covariance of the test rows' class logits, (rows, classes, classes)."""
    jacobians = (posterior.backend.jacobians(mapping(subject, [row]))[0] for row in subject.test)
    return torch.cat([posterior.functional_variance(j).detach() for j in jacobians])


@contextmanager
def quiet(attention: Callable[[], AbstractContextManager[None]] = plain_attention) -> Iterator[None]:
    """Run with an attention, and without the warnings that laplace-torch's way of calling torch gives rise to."""
    with attention(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*batching rule.*")
        warnings.filterwarnings("ignore", message="The prior precision has changed since fit.*")
        yield
