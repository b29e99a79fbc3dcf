"""The common parts of read-outs that score the text of labels with a causal language model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from laplora.linearised import Likelihood
from laplora.prompts.rows import Side


@dataclass(frozen=True)
class LabelText:
    """One label is right, and its text follows the prompt; ``token_ids`` has an entry a label, in their order."""

    token_ids: Sequence[object]

    @property
    def class_count(self) -> int:
        return len(self.token_ids)

    @property
    def likelihood(self) -> Likelihood:
        return "categorical"

    @property
    def side(self) -> Side:
        """The start of a row: the labels follow its last token."""
        return "left"

    @property
    def trained(self) -> tuple[str, ...]:
        """None: an adapted ``lm_head`` is LoRA's."""
        return ()
