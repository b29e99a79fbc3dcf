"""How methods are written in reports."""

from __future__ import annotations

_NAMES = {
    "zero_shot": "zero-shot",
    "map": "MAP",
    "temperature": "temperature scaling",
    "laplace": "Laplace",
    "conditioned": "temperature, conditioned",
    "laplace_conditioned": "Laplace, conditioned",
    "frozen": "head on the base",
    "encoder": "head on embeddings",
    "options": "head on options",
    "pooled": "pooled",
}


def display_name(method: str) -> str:
    """Return how a method is written: "MAP" for "map", "Laplace (evidence, group)" for "laplace_evidence_group"."""
    if method in _NAMES:
        return _NAMES[method]
    if method.endswith("_order_average"):
        return f"{display_name(method.removesuffix('_order_average'))}, order average"
    head, *rest = method.split("_")
    name = _NAMES.get(head, head)
    return f"{name} ({', '.join(rest)})" if rest else name


def as_sentence(text: str) -> str:
    """Return what is said of a method, which it may begin with, as a sentence: "MAP accepts nothing." """
    first, space, rest = text.partition(" ")
    name = _NAMES.get(first, first)
    return f"{name[:1].upper()}{name[1:]}{space}{rest}."
