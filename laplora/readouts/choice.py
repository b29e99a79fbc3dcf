"""Which read-out fits a model and its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from laplora.errors import LabelTokenError
from laplora.prompts.templates import PromptTemplate, resolve_label_sequences, resolve_label_tokens
from laplora.readouts.base import ReadOut
from laplora.readouts.label_sequences import LabelSequences
from laplora.readouts.label_tokens import LabelTokens

#: The read-outs of a causal language model by name.
ReadOutName = Literal["label_tokens", "label_sequences"]


def choose_readout(
    model: Any,
    tokenizer: Any,
    template: PromptTemplate,
    verbalizers: Sequence[str],
    wanted: ReadOutName | None = None,
) -> ReadOut:
    """Return the read-out of a model's labels.

    Args:
        verbalizers: the text after the prompt that stands for each label.
        wanted: one kind; None: label tokens where each label is one token of its own, else label sequences, which cost
            more.

    Raises:
        LabelTokenError: labels that no read-out, or not the wanted one, can tell apart.
    """
    if wanted != "label_sequences":
        try:
            return LabelTokens(tuple(resolve_label_tokens(tokenizer, template, verbalizers)))
        except LabelTokenError:
            if wanted == "label_tokens":
                raise
    return LabelSequences(resolve_label_sequences(tokenizer, template, verbalizers))
