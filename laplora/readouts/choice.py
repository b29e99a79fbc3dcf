"""Which read-out fits a model and its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from laplora.prompts.templates import PromptTemplate, resolve_label_tokens
from laplora.readouts.base import ReadOut
from laplora.readouts.label_tokens import LabelTokens


def choose_readout(
    model: Any,
    tokenizer: Any,
    template: PromptTemplate,
    verbalizers: Sequence[str],
    wanted: Literal["label_tokens"] | None = None,
) -> ReadOut:
    """Return the read-out of a model's labels.

    Args:
        verbalizers: the text after the prompt that stands for each label.
        wanted: one kind; None: the cheapest that can tell the labels apart.

    Raises:
        LabelTokenError: labels that no read-out, or not the wanted one, can tell apart.
    """
    return LabelTokens(tuple(resolve_label_tokens(tokenizer, template, verbalizers)))
