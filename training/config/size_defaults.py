"""Learning rate and length of training where a configuration names none, by the base's number of parameters."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SizeDefaults:
    """Defaults of the bases up to a size.

    Attributes:
        below: number of parameters, of the base alone.
        learning_rate: peak AdamW learning rate.
        epochs: passes over the training rows, in at most ``STEPS`` steps; None: ``STEPS``, whatever the rows.
        source: where the values are from, in words.
    """

    below: float
    learning_rate: float
    epochs: float | None
    source: str

    @property
    def length(self) -> str:
        """The length of training in words."""
        return f"{STEPS} steps" if self.epochs is None else f"{self.epochs:g} epochs, at most {STEPS} steps"


#: Optimizer steps of Yang et al. (arXiv 2308.13111).
STEPS = 2500
#: In order of size; the last one is of every larger base.
SIZES = (
    SizeDefaults(1e9, 5e-4, 8, "as the ready configurations of bases of this size"),
    SizeDefaults(5e9, 2e-4, 8, "the learning rate of Dettmers et al., arXiv 2305.14314; not measured here"),
    SizeDefaults(float("inf"), 5e-5, None, "Yang et al., arXiv 2308.13111"),
)


def size_defaults(parameters: int) -> SizeDefaults:
    """Return the defaults of a base with so many parameters."""
    return next(size for size in SIZES if parameters < size.below)
