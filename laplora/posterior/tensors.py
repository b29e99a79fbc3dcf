"""A posterior from tensors alone: Jacobians in, covariance out, for those with a training loop of their own.

    batches = lambda: ((logits(x), jacobians(x)) for x in loader)
    posterior = fit_jacobians(batches, StructureSettings(structure="exact"))
    covariance = jacobian_covariance(posterior, batch, prior=10.0)

No model, tokenizer or adapter is needed: a weight may be a matrix of any linear map, (outputs, inputs), a bias, or a
convolution's kernel. One with more inputs than outputs is a block of the group ``lora_A``, any other of ``lora_B``; a
prior by group has a precision for each. The prior is chosen by ``laplora.choose_by_validation`` from what
``project_jacobians`` returns, and ``laplora.posterior_predictive`` makes probabilities of the covariance.

With ``likelihood="bernoulli"`` several labels of a row may be right, each with a probability of its own, the sigmoid of
its logit. All three functions take it, and the Jacobians are then those of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from laplora.errors import ConfigError, DataError, NonFiniteError
from laplora.jacobians.blocks import Block, BlockJacobian, ContrastJacobians
from laplora.linearised import Likelihood, contrasts
from laplora.posterior.base import Posterior, Prior, ProjectedJacobians, block_precisions
from laplora.posterior.binary import binary_projected
from laplora.posterior.passes import State, StructureSettings
from laplora.posterior.structures import fit_posterior, needs_sums

#: Logits (batch, classes) in nats; by weight the Jacobians (batch, m, *shape) of the m = classes logits, or of their
#: m = classes - 1 contrasts (``laplora.linearised.contrasts``); where rows have fewer classes, a mask (batch, classes)
#: bool besides, true for the first ones of each row.
JacobianBatch = (
    tuple[torch.Tensor, Mapping[str, torch.Tensor]] | tuple[torch.Tensor, Mapping[str, torch.Tensor], torch.Tensor]
)
#: Batches that can be gone over several times: a list or a data loader, or a function that returns an iterator.
JacobianBatches = Iterable[JacobianBatch] | Callable[[], Iterable[JacobianBatch]]


def fit_jacobians(
    batches: JacobianBatches, settings: StructureSettings | None = None, *, likelihood: Likelihood = "categorical"
) -> Posterior:
    """Return the posterior of rows whose logits and Jacobians are given.

    Args:
        batches: of the training rows, at the trained weights. They are gone over once to look at the first batch, and
            then once or twice, by the structure. All batches have Jacobians of the same weights.
        settings: the structure and its size. ``ekfac`` takes its bases from the leading rank-one part of each row's
            Jacobian, which is all of it where a linear map runs once on a row.
        likelihood: ``bernoulli`` where several labels of a row may be right; then without a mask.

    Raises:
        ConfigError: ``kfac_reduce``, which needs each linear's inputs and gradients; an iterator, which can be gone
            over once only; or what ``fit_posterior`` refuses.
        DataError: no batches, or shapes that do not fit together.
        NonFiniteError: a Jacobian or logit that is NaN or infinite.
    """
    settings = settings or StructureSettings()
    if settings.structure == "kfac_reduce":
        raise ConfigError(
            "kfac_reduce needs the inputs and output gradients of each linear, which Jacobians do not tell: use "
            "ekfac, joint_core, joint or exact"
        )
    passes = _Batches(batches, None, needs_sums(settings.structure), likelihood)
    first = next(passes.batches(), None)
    if first is None:
        raise DataError("there are no batches: give at least one, in a list or from a function")
    blocks = tuple(_block(name, jacobian.shape[2:]) for name, jacobian in first[1].items())
    if not blocks:
        raise DataError("the first batch has no Jacobians: give those of at least one weight, by its name")
    return fit_posterior(settings, blocks, _Batches(batches, blocks, passes.sums, likelihood))


def project_jacobians(
    posterior: Posterior, batches: JacobianBatches, *, likelihood: Likelihood = "categorical"
) -> tuple[ProjectedJacobians, torch.Tensor]:
    """Return rows as far as the posterior looks at them, on the CPU, and their class mask (rows, classes) bool.

    ``laplora.choose_by_validation(posterior, projected, labels, class_mask)`` chooses the prior precision of them, and
    ``posterior.covariance(projected, precisions)`` is their covariance under any.

    Under ``bernoulli`` a row is one for each of its labels, next to each other, with the classes absent and present; so
    the labels are (rows * labels,), 0 or 1 (``laplora.predictive.binary_rows``).

    Raises:
        ConfigError, DataError, NonFiniteError: as ``fit_jacobians``; Jacobians of other weights than the posterior's.
    """
    parts: list[ProjectedJacobians] = []
    masks: list[torch.Tensor] = []
    for jacobians, mask in _Batches(batches, posterior.blocks, False, likelihood).contrasted():
        parts.append(posterior.project(jacobians))
        masks.append(mask.cpu())
    if not parts:
        raise DataError("there are no batches: give at least one, in a list or from a function")
    mean, kept, rest = (
        torch.cat([getattr(part, name).cpu() for part in parts]) for name in ("contrast_mean", "kept", "rest")
    )
    projected, mask = ProjectedJacobians(mean, kept, rest), torch.cat(masks)
    if likelihood == "bernoulli":
        return binary_projected(projected), torch.ones(mask.numel(), 2, dtype=torch.bool)
    return projected, mask


def jacobian_covariance(
    posterior: Posterior,
    batch: JacobianBatch,
    prior: float | Prior,
    *,
    of: Literal["contrasts", "logits"] = "contrasts",
    likelihood: Likelihood = "categorical",
) -> torch.Tensor:
    """Return the covariance of a batch's contrasts, (batch, classes - 1, classes - 1) float64, nats squared.

    Args:
        prior: its precision, one number for all weights; or one chosen by ``laplora.choose_by_validation``.
        of: ``logits``: of the centred logits, (batch, classes, classes), whose rows sum to 0. Under ``bernoulli`` both
            are of the labels' logits, (batch, labels, labels), not centred.

    Raises:
        DataError: Jacobians of other weights than the posterior's, or shapes that do not fit together.
        NonFiniteError: a Jacobian or logit that is NaN or infinite.
        PriorError: a precision that is not positive.
    """
    ((jacobians, mask),) = _Batches([batch], posterior.blocks, False, likelihood).contrasted()
    chosen = prior if isinstance(prior, Prior) else Prior("scalar", {"all": float(prior)})
    covariance = posterior.covariance_of(jacobians, block_precisions(chosen, posterior.blocks).to(mask.device))
    if of == "contrasts" or likelihood == "bernoulli":
        return covariance
    basis = contrasts(mask.shape[1]).to(covariance)
    return basis @ covariance @ basis.T


@dataclass(frozen=True)
class _Batches:
    """The rows' batches as a fit goes over them (``laplora.posterior.passes.Pass``).

    Attributes:
        given: what the caller gave; blocks: of the posterior; sums: whether the Kronecker factors are needed.
        likelihood: its directions are those of the Jacobians that a pass gets.
    """

    given: JacobianBatches
    blocks: tuple[Block, ...] | None
    sums: bool
    likelihood: Likelihood = "categorical"

    def __call__(
        self, title: str, empty: State, add: Callable[[State, ContrastJacobians, torch.Tensor], State]
    ) -> State:
        """Return the state after every row."""
        state = empty
        for jacobians, mask in self.contrasted():
            state = add(state, jacobians, mask)
        return state

    def batches(self) -> Iterator[JacobianBatch]:
        """Yield the batches as they were given."""
        found = self.given() if callable(self.given) else self.given
        if found is self.given and iter(found) is found:
            raise ConfigError(
                "the batches are gone over more than once, and an iterator can be used once: give a list, a data "
                "loader, or a function that returns a new iterator"
            )
        for batch in found:
            if not isinstance(batch, tuple | list) or len(batch) not in (2, 3) or not isinstance(batch[1], Mapping):
                raise DataError(
                    "a batch must be (logits, Jacobians by weight), or these and a class mask; give a list of batches, "
                    f"got {type(batch).__name__}"
                )
            yield batch

    def contrasted(self) -> Iterator[tuple[ContrastJacobians, torch.Tensor]]:
        """Yield each batch's logits with the Jacobians of its contrasts, and its class mask."""
        assert self.blocks is not None
        for batch in self.batches():
            logits, given = batch[0].detach(), {name: jacobian.detach() for name, jacobian in batch[1].items()}
            mask = batch[2] if len(batch) == 3 else torch.ones_like(logits, dtype=torch.bool)
            if logits.ndim != 2 or mask.shape != logits.shape:
                shapes = f"{tuple(logits.shape)} and {tuple(mask.shape)}"
                raise DataError(f"logits and class mask must both be (batch, classes), got {shapes}")
            if self.likelihood == "bernoulli" and not bool(mask.all()):
                raise DataError("under bernoulli every label of a row can be right: leave the class mask out")
            if set(given) != {block.name for block in self.blocks}:
                odd = sorted(set(given) ^ {block.name for block in self.blocks})
                raise DataError(f"every batch needs Jacobians of the same weights, which {odd[:4]} are not in all of")
            for name, values in {"the logits": logits, **given}.items():
                if not bool(values.isfinite().all()):
                    raise NonFiniteError(
                        f"NaN or infinity in {name}: look for the rows that give it, and leave them out"
                    )
            parts = tuple(self._block_jacobian(block, given[block.name], logits) for block in self.blocks)
            yield ContrastJacobians(logits, logits.new_zeros(len(logits), 0), parts, self.likelihood), mask

    def _block_jacobian(self, block: Block, given: torch.Tensor, logits: torch.Tensor) -> BlockJacobian:
        batch, classes = logits.shape
        rows, columns = _matrix_shape(given.shape[2:])
        one_label = self.likelihood == "categorical"
        if given.ndim < 2 or len(given) != batch or given.shape[1] not in (classes, classes - one_label):
            wanted = "classes or classes - 1" if one_label else "classes"
            raise DataError(
                f"the Jacobians of {block.name} must be (batch, {wanted}, *its shape) with batch {batch} and classes "
                f"{classes}, got {tuple(given.shape)}"
            )
        if _block(block.name, given.shape[2:]) != block:
            raise DataError(f"the Jacobians of {block.name} are of another shape than in the first batch")
        jacobian = given.reshape(batch, given.shape[1], rows, columns)
        if one_label and given.shape[1] == classes:
            jacobian = torch.einsum("ck,ncrs->nkrs", contrasts(classes, given.dtype).to(given.device), jacobian)
        if block.group == "lora_A":
            jacobian = jacobian.mT
        return BlockJacobian(jacobian, *(_rank_one(block, jacobian) if self.sums else ()))


def _block(name: str, shape: tuple[int, ...]) -> Block:
    """Return a weight of some shape as a block; its group says whether the wide side is inputs or outputs."""
    outputs, inputs = _matrix_shape(shape)
    if outputs >= inputs:
        return Block(name, "lora_B", outputs, inputs)
    return Block(name, "lora_A", inputs, outputs)


def _matrix_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return a weight's shape as a matrix: (outputs, everything else)."""
    rows = shape[0] if shape else 1
    return rows, torch.Size(shape[1:]).numel()


def _rank_one(block: Block, jacobian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return an input (batch, in) and gradients (batch, classes - 1, out) whose product is nearest to the Jacobian.

    How their scales share the product is not determined; both have the same norm.
    """
    sided = jacobian.mT if block.group == "lora_B" else jacobian  # (batch, classes - 1, in, out)
    batch, count, inputs, outputs = sided.shape
    left, values, right = torch.linalg.svd(sided.transpose(1, 2).reshape(batch, inputs, -1), full_matrices=False)
    scale = values[:, :1].sqrt()
    return left[:, :, 0] * scale, (right[:, 0] * scale).reshape(batch, count, outputs)
