"""An artifact that scorers have loaded, as the ingress has it: an encoder, and what a scorer said of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.backends.ray.messages import Facts

if TYPE_CHECKING:
    from laplora.encoder import Encoder


class RemoteModel:
    """A ``service.scoring.model.Model`` without weights.

    Args:
        encoder: of the artifact's folder on this machine; facts: as a scorer said them.
        base: stands for its base model.

    Attributes:
        base_name: of its base model, all that a manifest says of it.
    """

    def __init__(self, encoder: Encoder, facts: Facts, base: object) -> None:
        self.artifact, self.review_scores = encoder.artifact, encoder.review_scores
        self.class_count, self.max_tokens = encoder.class_count, encoder.max_tokens
        self.token_bounds = encoder.token_bounds
        self.recommended, self.predictives = encoder.recommended, encoder.predictives
        self.own_bytes, self.weights, self.reverse_pass = facts.own_bytes, facts.weights, facts.reverse_pass
        self.budget, self.base = facts.budget, base
        self.base_name = repr(self.artifact.manifest.base)
        self.encode, self.decided = encoder.encode, encoder.decided
        self.nothing_accepted = encoder.nothing_accepted
