"""The answer of another model that comes with an input: a probability for each label, as a server writes it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from laplora.errors import InvalidInputError
from laplora.prompts.templates import MODEL_PROBS

#: A probability below it counts as it: servers round, and nobody is as sure as a rounded 0 says.
LEAST = 1e-4
#: How far from 1 the sum of rounded probabilities may be; with many labels half a unit of the last digit for each.
_SUM, _ROUNDED = 0.05, 0.005


def model_log_probs(inputs: Mapping[str, Any], labels: Sequence[str]) -> tuple[float, ...]:
    """Return the other model's log probabilities by label, nats, of probabilities that are at least about ``LEAST``.

    Raises:
        InvalidInputError: no probability from 0 to 1 for each label and no other, or a sum that is not about 1.
    """
    problem = odd_probs(given := inputs.get(MODEL_PROBS), labels)
    if problem is not None:
        raise InvalidInputError(f"field {MODEL_PROBS!r} must {problem}", field=MODEL_PROBS)
    kept = [max(float(given[label]), LEAST) for label in labels]  # type: ignore[index]
    total = math.log(sum(kept))
    return tuple(math.log(one) - total for one in kept)


def odd_probs(given: Any, names: Sequence[str]) -> str | None:
    """Return what an answer should do and does not: a number from 0 to 1 by name, with a sum of about 1; else None."""
    if not isinstance(given, Mapping) or set(given) != set(names):
        wanted = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        return f"have a probability for each label and for nothing else: {wanted}"
    values = list(given.values())
    if any(isinstance(one, bool) or not isinstance(one, int | float) or not 0 <= one <= 1 for one in values):
        return "have numbers from 0 to 1"
    if abs(sum(values) - 1) > max(_SUM, _ROUNDED * len(values)):
        return f"sum to 1, and sums to {sum(values):.4g}"
    return None


def made_up_answer(labels: Sequence[str], about: str | None = None) -> dict[str, float]:
    """Return an answer that nobody gave: half for one label, the first if none is named, the rest in equal parts."""
    best = labels[0] if about is None else about
    return {label: 0.5 if label == best else 0.5 / (len(labels) - 1) for label in labels}
