"""How methods are written in reports and in the web UI."""

from __future__ import annotations

#: A few words about each method.
WORDS = {
    "zero_shot": "the base model, before any training",
    "map": "the model alone, without calibration",
    "temperature": "the model's logits divided by one fitted number",
    "conditioned": "temperature scaling, corrected by the calibration rows' labels",
    "laplace": "averaged over the models that fit the training rows",
    "frozen": "logistic regression on states of the base model",
    "encoder": "logistic regression on sentence embeddings",
    "options": "logistic regression on what the base model says of each option",
    "rescaled": "the other model's answer, corrected by how it is wrong on the labelled rows, whatever their texts",
    "corrected": "the other model's answer, corrected by a head on states of the base model",
    "pooled": "several answers together, with fitted weights",
}
_NAMES = {"zero_shot": "zero-shot", "map": "MAP", "temperature": "temperature scaling", "laplace": "Laplace"}
_NAMES |= {"conditioned": "temperature, conditioned", "laplace_conditioned": "Laplace, conditioned"}


def display_name(method: str) -> str:
    """Return how a method is written: "MAP" for "map", "Laplace (evidence, group)" for "laplace_evidence_group"."""
    if method in _NAMES:
        return _NAMES[method]
    head, *rest = method.split("_")
    name = _NAMES.get(head, head)
    return f"{name} ({', '.join(rest)})" if rest else name


def as_sentence(text: str) -> str:
    """Return what is said of a method, which it may begin with, as a sentence: "MAP accepts nothing." """
    first, space, rest = text.partition(" ")
    name = _NAMES.get(first, first)
    return f"{name[:1].upper()}{name[1:]}{space}{rest}."
