"""A head as named tensors, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from laplora.head import HeadError
from laplora.head.head import Head
from laplora.head.likelihood import Likelihood
from laplora.head.posterior import Spread
from laplora.head.scaling import Scaling

#: The tensors of a spread, but its basis; ``inverse`` may be missing.
_SPREAD = ("directions", "inverse", "moments", "curvatures")
_LIKELIHOODS: tuple[Likelihood, ...] = ("categorical", "bernoulli")


def head_tensors(head: Head) -> dict[str, torch.Tensor]:
    """Return all that a head is, for a file without pickles; ``head_of`` reads it back bit for bit."""
    factor = [] if head.inverse_temperature is None else [head.inverse_temperature]
    named = {
        "mean": head.scaling.means,
        "factor": head.scaling.factors,
        "weights": head.weights,
        "precision": {name: torch.tensor(each, dtype=torch.float64) for name, each in head.precisions.items()},
        "basis": head.spread.basis if head.spread else {},
    }
    tensors = {f"{kind}/{name}": each for kind, group in named.items() for name, each in group.items()}
    tensors["kind"] = torch.tensor([_LIKELIHOODS.index(head.likelihood), head.classes])
    tensors["constant"], tensors["inverse_temperature"] = head.constant, torch.tensor(factor, dtype=torch.float64)
    parts = {name: getattr(head.spread, name) for name in _SPREAD if head.spread}
    return tensors | {name: each for name, each in parts.items() if each is not None}


def head_of(tensors: Mapping[str, torch.Tensor]) -> Head:
    """Return the head that ``head_tensors`` wrote.

    Raises:
        HeadError: a tensor is missing, does not fit the others or is not finite.
    """
    tensors = {name: each.clone() for name, each in tensors.items()}  # as aligned as when they were made

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {name.partition("/")[2]: tensors[name] for name in sorted(tensors) if name.startswith(f"{prefix}/")}

    try:
        likelihood, classes = tensors["kind"].tolist()
        if len(tensors["constant"]) not in (0, classes):  # before anything is made that large
            raise HeadError(f"a constant of {len(tensors['constant'])} for {classes} classes")
        factor, weights, means, factors = tensors["inverse_temperature"], *map(under, ("weights", "mean", "factor"))
        parts = {name: tensors[name] for name in _SPREAD if name != "inverse"} if "moments" in tensors else {}
        head = Head(
            _LIKELIHOODS[likelihood],
            Scaling(means, factors),
            weights,
            tensors["constant"],
            classes,
            {name: float(each) for name, each in under("precision").items()},
            float(factor) if len(factor) else None,
            Spread(basis=under("basis"), inverse=tensors.get("inverse"), **parts) if parts else None,
        )
        fits = set(head.precisions) == {*means, *["constant"][head.conditional :]}  # infinite of a block left out
        good = [each > 0 if name[:9] == "precision" else each.isfinite() for name, each in tensors.items()]
        good += [tensors[name] >= 0 for name in ("moments", "curvatures") if name in tensors]
        zeros = {name: torch.zeros(2, *[1] * head.conditional, len(mean)) for name, mean in means.items()}
        offset = torch.zeros(2, 1 if head.conditional else classes) if len(factor) else None
        (head.predictive if head.spread else head.log_probs)(zeros, offset)
    except (ArithmeticError, KeyError, ValueError, IndexError, TypeError, RuntimeError) as error:
        raise HeadError(f"these tensors are no head: {type(error).__name__} at {error}") from None
    if not fits or not all(bool(each.all()) for each in good):
        raise HeadError(f"these tensors are no head of the blocks {sorted(means)}: one is missing or not finite")
    return head
