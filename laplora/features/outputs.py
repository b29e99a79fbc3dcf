"""The outputs of passes over rows, which experts read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

#: Whose log probabilities a pass gives: the trained adapter's or head's, the base's by label tokens, Laplace's average.
LogProbSource = Literal["adapter", "zero_shot", "laplace"]
#: Which features a pass gives.
FeatureSource = Literal["last_state", "frozen", "encoder", "options", "rescaled", "corrected"]
#: Features by block, each (rows, width) float32, or of a question's options (rows, options, width).
Blocks = Mapping[str, torch.Tensor]
#: The features that do not look at an adapter; the heads on them are called the same. ``rescaled`` has another model's
#: log probabilities, and ``corrected`` the states of ``frozen`` beside them: their heads correct that model's answer.
HeadSource = Literal["frozen", "encoder", "options", "rescaled", "corrected"]


@dataclass(frozen=True)
class Outputs:
    """The outputs of passes over rows, on the CPU.

    Attributes:
        class_mask: (rows, classes) bool, true at a row's possible classes.
        log_probs: by source (rows, classes) float64, nats, -inf at impossible classes; where several labels may be
            right (``bernoulli``) each label's logit.
        features: by source.
        covariance: (rows, classes - 1, classes - 1) float64, of the adapter's contrasts, nats squared; None without.
    """

    class_mask: torch.Tensor
    log_probs: Mapping[LogProbSource, torch.Tensor] = field(default_factory=dict)
    features: Mapping[FeatureSource, Blocks] = field(default_factory=dict)
    covariance: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.class_mask)

    def take(self, rows: torch.Tensor) -> Outputs:
        """Return some rows, by numbers (some,) int64 or by a mask (rows,) bool."""
        return Outputs(
            self.class_mask[rows],
            {source: values[rows] for source, values in self.log_probs.items()},
            {source: {name: block[rows] for name, block in blocks.items()} for source, blocks in self.features.items()},
            None if self.covariance is None else self.covariance[rows],
        )

    @classmethod
    def joined(cls, *parts: Outputs) -> Outputs:
        """Return the rows of several, which have the same sources and blocks."""
        first, covariances = parts[0], [part.covariance for part in parts if part.covariance is not None]
        return cls(
            torch.cat([part.class_mask for part in parts]),
            {source: torch.cat([part.log_probs[source] for part in parts]) for source in first.log_probs},
            {
                source: {name: torch.cat([part.features[source][name] for part in parts]) for name in blocks}
                for source, blocks in first.features.items()
            },
            torch.cat(covariances) if len(covariances) == len(parts) else None,
        )
