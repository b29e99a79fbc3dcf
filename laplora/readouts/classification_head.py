"""A classification head: the logits of a sequence classification model, as it pools them itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from laplora.errors import ModelError
from laplora.linearised import Likelihood
from laplora.models.classifier_head import (
    head_block,
    head_logits,
    head_side,
    head_state,
    output_layer,
    trained_linears,
    with_bias,
)
from laplora.models.lora import is_classifier
from laplora.models.readout import base_of
from laplora.prompts.rows import Batch, Side
from laplora.readouts.base import ClassScores, HeadGradient, LinearGradient, Record


@dataclass(frozen=True)
class ClassificationHead:
    """The read-out of a model of ``AutoModelForSequenceClassification``.

    Attributes:
        class_count: outputs of the head.
        likelihood: ``bernoulli`` where each label is right or wrong on its own.
        side: ``left`` for decoders, whose head reads the last token; ``right`` for encoders.
        trained: paths of the head's trained linears, that of the logits last; empty where LoRA alone was trained.
    """

    class_count: int
    likelihood: Likelihood
    side: Side
    trained: tuple[str, ...]

    @property
    def reads_last_token(self) -> bool:
        """Whether it is a decoder's."""
        return self.side == "left"

    def scores(self, model: Any, batch: Batch, record: Record | None = None) -> ClassScores:
        """Return the head's logits; ``hidden`` is what its last linear sees."""
        path, layer = output_layer(model)
        state = head_state(model, batch)
        logits = head_logits(layer, state)
        if record is not None and path in self.trained:
            logits = record(head_block(path), state, logits)
        return ClassScores(logits, state, batch.attention_mask)

    def label_mass(self, model: Any, hidden: torch.Tensor, class_mask: torch.Tensor) -> torch.Tensor:
        """Return 1, (batch,): a head answers nothing but labels."""
        return hidden.new_ones(len(hidden), dtype=torch.float32)

    def gradient(self, model: Any, scores: ClassScores, directions: torch.Tensor) -> HeadGradient:
        """Return the gradients at what the head's last linear sees, and those of that linear.

        For a decoder, that is the final hidden state. In an encoder, more layers of the head may follow it.
        """
        path, layer = output_layer(model)
        hidden = scores.hidden.to(layer.weight.device)
        wide = torch.promote_types(torch.float32, hidden.dtype)
        directions = directions.to(hidden.device, wide)
        below = directions @ layer.weight.to(wide)
        if path not in self.trained:
            return HeadGradient(below, ())
        gradients = directions.expand(-1, len(hidden), -1)
        part = LinearGradient(head_block(path), "head", with_bias(hidden.to(wide), layer), gradients)
        return HeadGradient(below, (part,))


def classification_head(model: Any) -> ClassificationHead:
    """Return the read-out of a sequence classification model, with LoRA or with a trained head alone.

    Raises:
        ModelError: a model of another kind, a head that predicts numbers or a single logit, or as
            ``laplora.models.classifier_head.trained_linears``.
    """
    base = base_of(model)
    if not is_classifier(base):
        raise ModelError(f"expected a model of AutoModelForSequenceClassification, got a {type(base).__name__}")
    classes, problem = base.config.num_labels, base.config.problem_type
    if problem == "regression" or classes < 2:
        raise ModelError(f"{type(base).__name__} predicts numbers: train a head of two or more classes (num_labels)")
    likelihood: Likelihood = "bernoulli" if problem == "multi_label_classification" else "categorical"
    return ClassificationHead(classes, likelihood, head_side(model), trained_linears(model))


def check_labels(readout: ClassificationHead, labels: int) -> None:
    """Raise ModelError unless a head has as many classes as there are labels."""
    if readout.class_count != labels:
        raise ModelError(
            f"the head has {readout.class_count} classes, there are {labels} labels: name every class, in the order of "
            "the model's outputs"
        )


def check_order(model: Any, labels: Sequence[str]) -> None:
    """Raise ModelError where a model's configuration names its outputs as the labels, in another order."""
    names = output_names(base_of(model).config)
    if names is not None and sorted(names) == sorted(labels) and names != tuple(labels):
        raise ModelError(
            f"the model's outputs are {list(names)[:8]} (config.id2label), the labels {list(labels)[:8]}: give them in "
            "that order"
        )


def output_names(config: Any) -> tuple[str, ...] | None:
    """Return what a model's configuration calls its outputs, in order; None where it has transformers' LABEL_0, ..."""
    names = tuple(str(name).strip() for _, name in sorted((config.id2label or {}).items()))
    unnamed = all(name == f"LABEL_{number}" for number, name in enumerate(names))
    return None if unnamed or len(set(names)) != len(names) else names
