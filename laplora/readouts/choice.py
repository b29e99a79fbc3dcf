"""Which read-out fits a model and its labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from laplora.errors import ConfigError, LabelTokenError
from laplora.models.classifier_head import is_adapted
from laplora.models.lora import is_classifier
from laplora.models.readout import base_of
from laplora.prompts.templates import PromptTemplate, resolve_label_sequences, resolve_label_tokens
from laplora.readouts.classification_head import ClassificationHead, check_labels, classification_head
from laplora.readouts.label_sequences import LabelSequences, check_head
from laplora.readouts.label_tokens import LabelTokens
from laplora.readouts.no_answer import NoAnswer

#: The read-outs of a causal language model by name.
ReadOutName = Literal["label_tokens", "label_sequences"]


def choose_readout(
    model: Any,
    tokenizer: Any,
    template: PromptTemplate,
    verbalizers: Sequence[str],
    wanted: ReadOutName | None = None,
) -> LabelTokens | LabelSequences | ClassificationHead | NoAnswer:
    """Return the read-out of a model's labels: of a sequence classification model its head.

    A model with neither adapter nor head has ``NoAnswer`` where it is no causal language model, and unless sequences
    are wanted where some label is more than one token: an answer that nothing was trained for is not worth their cost.

    Args:
        verbalizers: the text after the prompt that stands for each label.
        wanted: one kind; None: label tokens where each label is one token, else label sequences.

    Raises:
        LabelTokenError: labels that no read-out, or not the wanted one, can tell apart; a tokenizer that ends every
            text with a token of its own, after which they would be read.
        ModelError: label sequences with an adapted output embedding; a head with another number of classes, or as of
            ``classification_head``.
        ConfigError: label tokens or sequences of a model that has a head, or no output embedding.
    """
    if is_classifier(base_of(model)):
        if wanted is not None:
            raise ConfigError(f"a {type(base_of(model)).__name__} is read at its head, not by {wanted}: leave it out")
        head = classification_head(model)
        check_labels(head, len(verbalizers))
        return head
    if not is_adapted(model) and (plain := _of_plain(model, tokenizer, template, verbalizers, wanted)) is not None:
        return plain
    readout = named_readout(tokenizer, template, verbalizers, wanted)
    if isinstance(readout, LabelSequences):
        check_head(model)
    return readout


def _of_plain(
    model: Any, tokenizer: Any, template: PromptTemplate, verbalizers: Sequence[str], wanted: ReadOutName | None
) -> NoAnswer | None:
    """Return the read-out of a model with neither adapter nor head that is not asked for its labels; else None."""
    if model.get_output_embeddings() is None:
        if wanted is not None:
            raise ConfigError(f"a {type(model).__name__} has no output embedding for {wanted}: leave readout out")
        return NoAnswer(len(verbalizers), "right")
    if wanted is not None:
        return None
    try:
        readout = named_readout(tokenizer, template, verbalizers, None)
    except LabelTokenError:
        return NoAnswer(len(verbalizers), "left")
    return None if isinstance(readout, LabelTokens) else NoAnswer(len(verbalizers), "left")


def named_readout(
    tokenizer: Any, template: PromptTemplate, verbalizers: Sequence[str], wanted: ReadOutName | None
) -> LabelTokens | LabelSequences:
    """Return the read-out of labels, as ``choose_readout`` without a model to check.

    Raises LabelTokenError as it, and ConfigError for no such read-out.
    """
    if wanted not in (None, *get_args(ReadOutName)):
        raise ConfigError(f"readout must be one of {list(get_args(ReadOutName))}, or None to choose, got {wanted!r}")
    _check_ending(tokenizer)
    if wanted == "label_tokens":
        return LabelTokens(tuple(resolve_label_tokens(tokenizer, template, verbalizers)))
    sequences = resolve_label_sequences(tokenizer, template, verbalizers)
    if wanted is None and all(len(tokens) == 1 for tokens in sequences):
        return LabelTokens(tuple(token for (token,) in sequences))
    return LabelSequences(sequences)


def _check_ending(tokenizer: Any) -> None:
    """Raise LabelTokenError where a tokenizer puts a token between the prompt and the label."""
    ids, plain = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    if ids and plain and ids[-1] != plain[-1]:
        raise LabelTokenError(
            f"the tokenizer ends every text with token {ids[-1]}, and labels would be read after it: load it with "
            "add_eos_token=False; if the model was trained on such prompts, give readout=LabelTokens(...)"
        )
