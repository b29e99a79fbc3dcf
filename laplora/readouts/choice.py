"""Which read-out fits a model and its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from laplora.prompts.templates import PromptTemplate, resolve_label_sequences, resolve_label_tokens
from laplora.readouts.label_sequences import LabelSequences, check_head
from laplora.readouts.label_tokens import LabelTokens

#: The read-outs of a causal language model by name.
ReadOutName = Literal["label_tokens", "label_sequences"]


def choose_readout(
    model: Any,
    tokenizer: Any,
    template: PromptTemplate,
    verbalizers: Sequence[str],
    wanted: ReadOutName | None = None,
) -> LabelTokens | LabelSequences:
    """Return the read-out of a model's labels.

    Args:
        verbalizers: the text after the prompt that stands for each label.
        wanted: one kind; None: label tokens where each label is one token, else label sequences.

    Raises:
        LabelTokenError: labels that no read-out, or not the wanted one, can tell apart.
        ModelError: label sequences with an adapted output embedding.
    """
    readout = named_readout(tokenizer, template, verbalizers, wanted)
    if isinstance(readout, LabelSequences):
        check_head(model)
    return readout


def named_readout(
    tokenizer: Any, template: PromptTemplate, verbalizers: Sequence[str], wanted: ReadOutName | None
) -> LabelTokens | LabelSequences:
    """Return the read-out of labels, as ``choose_readout`` without a model to check."""
    if wanted == "label_tokens":
        return LabelTokens(tuple(resolve_label_tokens(tokenizer, template, verbalizers)))
    sequences = resolve_label_sequences(tokenizer, template, verbalizers)
    if wanted is None and all(len(tokens) == 1 for tokens in sequences):
        return LabelTokens(tuple(token for (token,) in sequences))
    return LabelSequences(sequences)
