"""The Laplace posterior over a head's weights: how far logits may still move, and probabilities averaged over it.

With weights of unit prior variance and ``a`` the scaled features of an input (``spaces``), the posterior precision is
``H = I + sum_n a_n a_n^T (x) Lambda_n``. An orthonormal ``kept`` basis of what the rows span makes ``r = U^T a``;
outside it the posterior is the prior. So the covariance of an input's logit contrasts is

    ``V = (r (x) I)^T H_kept^-1 (r (x) I) + (|a|^2 - |r|^2) I``.

``H_kept`` is exact where its side, kept x directions, and their square are at most ``MOST_EXACT``. Beyond, the mean of
``Lambda_n`` stands for each of them (KFAC, Martens and Grosse, arXiv 1503.05671), and ``U`` diagonalises it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations_with_replacement

import torch

from laplora.head.likelihood import Likelihood, log_probs_of
from laplora.head.scaling import CHUNK
from laplora.head.spaces import RowSpace, Space, gram_of

#: Side of a Hessian up to which it is exact: its inverse is kept, 17 MB as float32 at this, made in 2 s.
MOST_EXACT = 2048
#: Directions of the rows with less than this share of the largest eigenvalue are rounding.
_NULL = 1e-10
#: Quasi-random points of an average, antithetic partners included, and bytes of a temporary; the least leverage.
POINTS, _BYTES, _TINY = 256, 1 << 26, torch.finfo(torch.float64).tiny


@dataclass(frozen=True)
class Spread:
    """The posterior covariance, without rows.

    Attributes:
        basis: by block, (width, kept) float32, what makes ``r`` of standardised features; ``constant``'s is (1, kept).
        directions: (classes, directions) float64 of the logits; empty of options.
        inverse: (kept, directions, kept, directions) float32 ``H^-1``; None beyond ``MOST_EXACT``.
        moments: (kept,) float64 eigenvalues of ``sum_n a_n a_n^T``; curvatures: (directions,) float64 of the mean
            ``Lambda``; with them ``H`` is ``1 + moments x curvatures`` where ``inverse`` is None.
    """

    basis: Mapping[str, torch.Tensor]
    directions: torch.Tensor
    inverse: torch.Tensor | None
    moments: torch.Tensor
    curvatures: torch.Tensor


@dataclass(frozen=True)
class Predictive:
    """Answers of a head with their spread, float64.

    Attributes:
        log_probs: (rows, classes) at the mode, nats.
        probs: (rows, classes) averaged over the posterior; std: (rows, classes) their standard deviation;
            expected_entropy: (rows,) mean entropy, nats; under ``bernoulli`` summed over the labels.
        variance: (rows, classes) of the logits, of one softmax less their mean over the possible classes, nats^2.
        leverage: (rows,) trace of the covariance that the blocks give the logits, without the constant, over that
            before any row, in (0, 1]: near 1, no fitted row is alike. It is equal for all inputs along one direction.
    """

    likelihood: Likelihood
    log_probs: torch.Tensor
    probs: torch.Tensor
    std: torch.Tensor
    expected_entropy: torch.Tensor
    variance: torch.Tensor
    leverage: torch.Tensor

    @property
    def epistemic(self) -> torch.Tensor:
        """Return (rows,) the entropy of ``probs`` less ``expected_entropy``: mutual information with weights, nats."""
        return (_entropy(self.likelihood, self.probs) - self.expected_entropy).clamp_min(0)


def contrasts(classes: int) -> torch.Tensor:
    """Return (classes, classes - 1) float64 Helmert contrasts: orthonormal columns orthogonal to the ones vector."""
    k = torch.arange(1, classes, dtype=torch.float64)
    scale = (k * (k + 1)).sqrt()
    q = (1 / scale).repeat(classes, 1).triu_()
    q.diagonal(-1).copy_(-k / scale)
    return q


def spread_of(space: Space, names: list[str], probs: torch.Tensor, likelihood: Likelihood) -> Spread:
    """Return the posterior's spread, of a space at prior variances of blocks that have these names.

    ``probs`` are (rows, classes) at the mode, 0 at impossible classes.
    """
    designs, stretched = space.designs, space.variances.sqrt().repeat_interleave(torch.tensor(space.designs.widths))

    def scaled(some: slice) -> torch.Tensor:
        return designs.fitted[some] * stretched  # float64

    rows = len(designs.fitted)
    parts = [slice(start, start + CHUNK) for start in range(0, rows, CHUNK)]
    by_rows = rows < len(stretched)
    if by_rows:
        gram = space.gram if isinstance(space, RowSpace) else gram_of(scaled(slice(None)))
    else:
        gram = torch.zeros(len(stretched), len(stretched), dtype=torch.float64)
        for part in parts:
            gram += gram_of(scaled(part).T)
    moments, vectors = torch.linalg.eigh(gram)
    kept = moments > _NULL * moments[-1]
    moments, vectors = moments[kept], vectors[:, kept]
    if designs.conditional:  # beyond, the posterior is taken as wide as the prior
        moments, vectors = moments[-MOST_EXACT:], vectors[:, -MOST_EXACT:]
    whole = vectors
    if by_rows:  # however near 0 the moments are, the basis is of unit length
        scale = stretched.to(designs.fitted.dtype)[:, None]
        whole = (designs.fitted.T @ vectors.to(scale.dtype)).mul_(scale)
        if not designs.conditional:  # beside a constant's wide prior, its sums in float32 would be rounding
            whole[-1] = vectors.sum(0) * stretched[-1]
        lengths = whole.norm(dim=0)
        whole, moments = whole.div_(lengths).mul_(scale), lengths.double().square()
    basis = torch.split(whole if by_rows else whole * stretched[:, None], designs.widths)
    by_name = {name: part.float().contiguous() for name, part in zip(names, basis, strict=True)}

    def reduced() -> Iterator[tuple[slice, torch.Tensor]]:
        for part in parts:
            yield part, vectors[part] * moments.sqrt() if by_rows else scaled(part) @ vectors

    classes = probs.shape[1]
    if designs.conditional:
        inputs = torch.cat([part for _, part in reduced()])
        weighted = _hessians("categorical", probs, torch.eye(classes).double()) @ inputs.view(*probs.shape, -1)
        inverse = _inverse(inputs.T @ weighted.flatten(0, 1))[:, None, :, None]
        return Spread(by_name, torch.zeros(0, 0), inverse, moments, torch.zeros(1).double())
    directions = torch.eye(classes).double() if likelihood == "bernoulli" else contrasts(classes)
    if max(count := directions.shape[1], len(moments)) * count <= MOST_EXACT:
        shape = (len(moments), count) * 2
        summed = torch.zeros(shape, dtype=torch.float64)
        for part, inputs in reduced():
            hessians = _hessians(likelihood, probs[part], directions)
            for one, other in combinations_with_replacement(range(count), 2):
                summed[:, one, :, other] += inputs.T @ (inputs * hessians[:, one, other, None])
                summed[:, other, :, one] = summed[:, one, :, other]
        inverse = _inverse(summed.flatten(2).flatten(0, 1)).reshape(shape)
        return Spread(by_name, directions, inverse, moments, torch.zeros(count).double())
    mean = torch.diag((probs * (1 - probs)).mean(0))
    if likelihood == "categorical":
        mean = torch.diag(probs.mean(0)) - probs.T @ probs / len(probs)
    curvatures, turned = torch.linalg.eigh(directions.T @ mean @ directions)
    return Spread(by_name, (directions @ turned).contiguous(), None, moments, curvatures.clamp_min(0))


def averaged(
    spread: Spread,
    scaled: Mapping[str, torch.Tensor],
    variances: Mapping[str, float],
    logits: torch.Tensor,
    class_mask: torch.Tensor,
    likelihood: Likelihood,
    points: int = POINTS,
) -> Predictive:
    """Return the answers of inputs whose logits at the mode are ``logits``, (rows, classes) nats.

    Args:
        scaled: standardised features by block, with the constant's; variances: of the prior; points: an even number.
    """
    options, directions = (1, spread.directions.shape[1]) if len(spread.directions) else (logits.shape[1], 1)
    side = max(points, logits.shape[1], 0 if spread.inverse is None else directions * len(spread.moments))
    rows = max(1, _BYTES // (8 * logits.shape[1] * side))
    chunks = []
    for start in range(0, len(logits), rows):
        some, wide = slice(start, start + rows), slice(start * options, (start + rows) * options)
        parts = {name: block[wide].double() for name, block in scaled.items()}
        turned = _turned(spread.directions, class_mask[some], likelihood)
        kept = {name: block @ spread.basis[name].double() for name, block in parts.items()}
        priors = {name: variances[name] * _gram(block, options) for name, block in parts.items()}
        covariance = _covariance(spread, kept, priors, directions)
        for of in (kept, priors):
            of.pop("constant", None)
        of_blocks, prior = _covariance(spread, kept, priors, directions), torch.stack([*priors.values()]).sum(0)
        if covariance.ndim == 3:
            root, moved = turned @ _root(covariance), (turned @ of_blocks * turned).sum((1, 2))
        else:
            root, moved = turned * covariance.sqrt()[:, None], (turned.square() * of_blocks[:, None]).sum((1, 2))
        # A prior of options is centred already; else each free direction has it.
        before = prior.diagonal(dim1=1, dim2=2).sum(1) * (turned.square().sum((1, 2)) if options == 1 else 1)
        leverage = (moved / before.clamp_min(_TINY)).clamp(_TINY, 1.0)
        chunks.append(_answers(root, leverage, logits[some], class_mask[some], likelihood, points))
    return Predictive(likelihood, *(torch.cat(columns) for columns in zip(*chunks, strict=True)))


def _gram(features: torch.Tensor, options: int) -> torch.Tensor:
    by_row = features.reshape(-1, options, features.shape[1])
    return by_row @ by_row.mT


def _covariance(
    spread: Spread, parts: Mapping[str, torch.Tensor], priors: Mapping[str, torch.Tensor], directions: int
) -> torch.Tensor:
    """Return a covariance (rows, side, side), or its diagonal (rows, side), of what blocks make.

    Args:
        parts: by block ``r``; priors: by block (rows, options, options).
    """
    kept, prior = torch.stack([*parts.values()]).sum(0), torch.stack([*priors.values()]).sum(0)
    options = prior.shape[1]
    rest = prior - _gram(kept, options)
    if spread.inverse is None:
        moved = kept.square() @ (1 / (1 + spread.moments[:, None] * spread.curvatures))
        return moved + rest[:, 0].clamp_min(0)
    width, size = kept.shape[1], options * directions
    half = (kept.float() @ spread.inverse.reshape(width, -1)).view(-1, size, width, directions)
    learned = torch.einsum("qakb,qok->qaob", half, kept.float().view(-1, options, width))
    rest = rest if options > 1 else rest.clamp_min(0) * torch.eye(directions).double()
    return learned.reshape(-1, size, size).double() + rest


def _root(covariance: torch.Tensor) -> torch.Tensor:
    """Return the symmetric root of (rows, side, side), rounding below 0 taken as 0."""
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    root: torch.Tensor = (vectors * values.clamp_min(0).sqrt()[:, None, :]) @ vectors.mT
    return root


def _turned(directions: torch.Tensor, class_mask: torch.Tensor, likelihood: Likelihood) -> torch.Tensor:
    """Return (rows, classes, side) directions at the possible classes, less their mean over these of one softmax."""
    possible = class_mask[:, :, None].double()
    turned = possible * (directions if len(directions) else torch.eye(class_mask.shape[1]).double())
    mean = turned.sum(1, keepdim=True) / possible.sum(1, keepdim=True)
    return turned - possible * mean if likelihood == "categorical" else turned


def _answers(
    root: torch.Tensor, leverage: torch.Tensor, logits: torch.Tensor, mask: torch.Tensor, kind: Likelihood, points: int
) -> tuple[torch.Tensor, ...]:
    """Return the fields of ``Predictive`` in order, of a few rows; ``root`` is (rows, classes, side) of the logits."""
    half = _points(root.shape[2], points) @ root.mT
    draws = torch.cat([logits[:, None] + half, logits[:, None] - half], 1)
    log_probs = log_probs_of(kind, draws, mask[:, None].expand(draws.shape))
    probs = log_probs.exp()
    mean = probs.mean(1)
    # About the mean, not E[p^2] - E[p]^2: that difference loses every digit at small variances.
    std = (probs - mean[:, None]).square().mean(1).sqrt()
    expected = _entropy(kind, probs).mean(1)
    return log_probs_of(kind, logits, mask), mean, std, expected, root.square().sum(2), leverage


def _entropy(likelihood: Likelihood, probs: torch.Tensor) -> torch.Tensor:
    """Return (...,) the entropy of (..., classes), nats; of labels on their own the sum over them."""
    terms: torch.Tensor = torch.special.entr(probs)
    if likelihood == "bernoulli":
        terms = terms + torch.special.entr(1 - probs)
    return terms.sum(-1)


@lru_cache(maxsize=16)
def _points(dimension: int, points: int) -> torch.Tensor:
    """Return (points / 2, dimension) standard normal quasi-random points, the first of each antithetic pair."""
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=0)  # type: ignore[no-untyped-call]
    normal: torch.Tensor = torch.special.ndtri(engine.draw(points // 2, dtype=torch.float64) + 2.0**-31)
    return normal


def _hessians(likelihood: Likelihood, probs: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    """Return (rows, directions, directions) ``Lambda`` of each row."""
    if likelihood == "bernoulli":
        return torch.diag_embed(probs * (1 - probs))
    return directions.T @ (torch.diag_embed(probs) - probs[:, :, None] * probs[:, None, :]) @ directions


def _inverse(summed: torch.Tensor) -> torch.Tensor:
    """Return ``(I + summed)^-1`` as float32."""
    summed.diagonal().add_(1)
    return torch.cholesky_inverse(torch.linalg.cholesky(summed)).float().contiguous()
