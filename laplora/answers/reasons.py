"""Why a row is accepted or goes to review, in one sentence with figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from laplora.decisions.thresholds import Flag, ReviewRule

#: Why a flag sends a row to review whatever its score is, of a whole answer.
_FLAGS: Mapping[Flag, Callable[[Mapping[str, Any]], str]] = {
    "unfamiliar": lambda a: f"unlike the training rows (p = {a['familiarity'] or 0:.2g})",
    "high_epistemic": lambda a: (
        f"plausible models disagree (epistemic uncertainty {(a['uncertainty'] or {}).get('epistemic', 0):.2g} nats)"
    ),
    "low_label_mass": lambda a: f"the labels have {a['label_mass'] or 0:.2g} of the model's probability",
    "truncated": lambda a: "the input was cut",
}
#: Predictives that correct the fine-tuned model's own answer.
_CORRECTIONS = ("laplace", "temperature", "conditioned")


def decision_reason(answer: Mapping[str, Any], rule: ReviewRule) -> str:
    """Return why an answer has its decision, such as ``0.82 is below 0.91, the threshold for a 5 % error rate``.

    Both figures are probabilities if the row has two labels, or if several may be right: an entropy and a probability
    then say the same. With more labels they are entropies, nats. The sentence also says if ``map_probs`` favour another
    label than ``probs``.

    Args:
        answer: a whole one (``laplora.answers.written``); rule: what its score was compared with.
    """
    reasons = [_FLAGS[flag](answer) for flag in answer["flags"] if flag in _FLAGS]
    if not reasons or "low_confidence" in answer["flags"]:
        reasons.append(_compared(answer, rule))
    other = _other_label(answer) if answer.get("answered_by") in _CORRECTIONS else None
    return ", and ".join(reasons) + ("" if other is None else f"; map_probs favours {other!r}")


def _other_label(answer: Mapping[str, Any]) -> str | None:
    """Return the label that the model alone favours, if one label is right and it is not the answer's."""
    at_map = answer["map_probs"]
    if "labels" in answer or at_map is None:
        return None
    label = max(at_map, key=at_map.__getitem__)
    return None if label == answer["label"] else str(label)


def _compared(answer: Mapping[str, Any], rule: ReviewRule) -> str:
    """Return what the score says beside its threshold."""
    score, several, target = answer["score"], "labels" in answer, _percent(rule.target_risk)
    if rule.threshold is None:
        return f"no threshold reaches {target}"
    limit = f"the threshold for a {target} error rate"
    if rule.guarantee == "upper_bound":
        if _other_label(answer) is not None:
            return "only answers on which map_probs agree are accepted"
        limit = (
            f"the threshold for at most {target} accepted and wrong, with {_percent(rule.confidence or 0)} confidence"
        )
    accepted, source = score <= rule.threshold, " of map_probs" if rule.score == "map_entropy" else ""
    if several or len(answer["probs"]) == 2:
        mine, least = _figures(_probability(score), _probability(rule.threshold))
        of = " of the least sure label" if several else source
        return f"{mine}{of} is {'at least' if accepted else 'below'} {least}, {limit}"
    mine, most = _figures(score, rule.threshold)
    return f"the entropy{source}, {mine} nats, is {'at most' if accepted else 'above'} {most}, {limit}"


@lru_cache(maxsize=64)  # of a threshold, once for all rows
def _probability(entropy: float) -> float:
    """Return the larger of the two probabilities whose entropy is this many nats."""
    low, high = 0.5, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        rest = 1 - middle
        if -middle * math.log(middle) - rest * math.log(rest) > entropy:
            low = middle
        else:
            high = middle
    return high


def _figures(one: float, other: float) -> tuple[str, str]:
    """Return two figures with as few digits, 2 to 6, as tell them apart, from 0 and from 1."""
    for digits in range(2, 7):
        texts = f"{one:.{digits}f}", f"{other:.{digits}f}"
        rounded = any(
            float(text) in (0, 1) and value not in (0, 1) for text, value in zip(texts, (one, other), strict=True)
        )
        if not rounded and (texts[0] != texts[1] or one == other):
            break
    return texts


def _percent(share: float, digits: int = 3) -> str:
    return f"{100 * share:.{digits}g} %"
