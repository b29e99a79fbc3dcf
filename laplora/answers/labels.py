"""An artifact's labels, and the true ones that requests name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laplora.errors import InvalidInputError

if TYPE_CHECKING:
    from laplora.artifact.manifest import Manifest

#: The place of the right label, or of a soft one the probability of each; where several may be right, the places of
#: those that are, ascending.
Truth = int | tuple[float, ...]


@dataclass(frozen=True)
class LabelNames:
    """The label words of an artifact, whether several of an input's may be right, and whether they have an order."""

    names: tuple[str, ...]
    several: bool = False
    ordered: bool = False

    @classmethod
    def of(cls, manifest: Manifest) -> LabelNames:
        """Return an artifact's."""
        return cls(manifest.labels, manifest.likelihood == "bernoulli", manifest.calibration.ordered)

    @property
    def questions(self) -> int:
        """How many rows of the metrics an input is: one, or where several labels may be right one for each label."""
        return len(self.names) if self.several else 1

    def truth(self, label: str | list[str] | dict[str, float], fields: Mapping[str, Any]) -> Truth:
        """Return where an input's true label, or labels, are among those that it can take; of a dict, probabilities.

        Args:
            fields: the template's, by name.

        Raises:
            InvalidInputError: a label that is none of them; a list where one label is right, or none where several may
                be; probabilities that do not sum to 1.
        """
        choices = fields.get("choices")
        possible = list(self.names[: len(choices)] if isinstance(choices, list) else self.names)
        if self.several != isinstance(label, list):
            raise InvalidInputError(
                "the label must be a list of labels, which may be empty: of this artifact several may be right"
                if self.several
                else f"the label must be one of {possible}, not a list: of this artifact one label is right",
                field="label",
            )
        given = [label] if isinstance(label, str) else list(label)
        if any(one not in possible for one in given):
            what = "each label" if self.several else "the label"
            raise InvalidInputError(f"{what} must be one of {possible}, the artifact's label words", field="label")
        if isinstance(label, dict):
            from laplora.prompts.labelled import SUM_TOLERANCE

            total = math.fsum(label.values())
            if abs(total - 1) > SUM_TOLERANCE or min(label.values()) < 0:
                raise InvalidInputError("the probabilities of a label are 0 or more and sum to 1", field="label")
            shares = tuple(label.get(name, 0.0) / total for name in self.names)
            return shares.index(1.0) if 1.0 in shares else shares
        places = sorted({possible.index(one) for one in given})
        return tuple(places) if self.several else places[0]
