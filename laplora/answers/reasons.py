"""Why a predictive answers, and why a row is accepted or goes to review, each in one sentence with figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from laplora.decisions.thresholds import Flag, ReviewRule

if TYPE_CHECKING:
    from laplora.artifact.manifest import Manifest

#: Why a flag sends a row to review whatever its score is, of a whole answer.
_FLAGS: Mapping[Flag, Callable[[Mapping[str, Any]], str]] = {
    "unfamiliar": lambda a: (
        "unlike the training rows (farther from them than "
        f"{_percent(math.floor(1000.0001 * (1 - (a['familiarity'] or 0))) / 1000)} of the calibration rows)"
    ),
    "high_epistemic": lambda a: (
        "plausible models disagree more than on 95 % of the calibration rows "
        f"(epistemic uncertainty {(a['uncertainty'] or {}).get('epistemic', 0):.2g} nats)"
    ),
    "low_label_mass": lambda a: (
        f"the labels have {a['label_mass'] or 0:.2g} of the model's probability, less than on 99 % of the calibration "
        "rows"
    ),
    "truncated": lambda a: "the input was cut",
    "other_model": lambda a: "another model answered than the one that is corrected here",
}
#: Predictives that correct the fine-tuned model's own answer.
_CORRECTIONS = ("laplace", "temperature", "conditioned")


def reason_for(manifest: Manifest, predictive: str) -> str:
    """Return why a predictive answers: why it is recommended, or that it was asked for, with its figures."""
    best = manifest.recommended
    if predictive == best.predictive:
        return best.reason
    losses = [best.table[name]["nll"] for name in (predictive, best.predictive) if name in best.table]
    reason = f"{predictive} was asked for"
    if len(losses) == 2:
        reason += (
            f"; its NLL is {losses[0]:.3f} nats on {manifest.calibration.rows} calibration rows, that of "
            f"{best.predictive}, which is recommended, {losses[1]:.3f}"
        )
    return reason


def decision_reason(answer: Mapping[str, Any], rule: ReviewRule) -> str:
    """Return why an answer has its decision, such as ``0.82 is below 0.91, the threshold for a 5 % error rate``.

    The first figure is the label's probability, the second what it needs to be accepted. With more than two labels that
    depends on how the others share the rest. The sentence also says if ``map_probs`` favour another label than
    ``probs``.

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
    if rule.costs is not None:
        review = rule.costs.review
        first, second = (f"{cost:.4g}" for cost in (answer["expected_cost"], review))
        above = "at most" if answer["expected_cost"] <= review else "just above" if first == second else "above"
        return f"it is expected to cost {first}, {above} the {second} of a person's look"
    rule = rule.of_label(answer["label"])
    score, several, target = answer["score"], "labels" in answer, _percent(rule.target_risk)
    if rule.threshold is None:
        none = f"no answer is accepted: the calibration rows show none sure enough for a {target} error rate"
        return none if rule.by_label is None else none.replace("no answer", f"no answer {answer['label']!r}", 1)
    limit = f"for a {target} error rate"
    if rule.guarantee == "upper_bound":
        # The score of a label on which they do not agree is twice the largest entropy, 1.39 nats.
        if score > 1 if several else _other_label(answer) is not None:
            return "only answers on which map_probs agree are accepted"
        limit = f"for at most {target} accepted and wrong, with {_percent(rule.confidence or 0)} confidence"
    source = "map_probs" if rule.score == "map_entropy" and answer.get("answered_by") != "map" else None
    if several or len(answer["probs"]) == 2:
        mine, rest, needed = _probability(score), 0.0, "the threshold"
    else:
        mine, needed = answer[source or "probs"][answer["label"]], "which this answer needs"
        rest = max(0.0, (score - entropy_of_two(mine)) / (1 - mine)) if mine < 1 else 0.0
    first, second = _figures(mine, _probability(rule.threshold, min(rest, math.log(len(answer["probs"])))))
    of = f"{' of the least sure label' if several else ''}{f' of {source}' if source else ''}"
    verdict = "at least" if score <= rule.threshold else "just below" if first == second else "below"
    return f"{first}{of} is {verdict} {second}, {needed} {limit}"


def entropy_of_two(prob: float) -> float:
    """Return the entropy of a label that has a probability and all else, nats."""
    return -sum(p * math.log(p) for p in (prob, 1 - prob) if p > 0)


@lru_cache(maxsize=64)  # of two labels, once for all rows
def _probability(entropy: float, rest: float = 0.0) -> float:
    """Return the largest probability at which a label's answer has an entropy, nats, or the next that any has.

    Args:
        rest: entropy of how the other labels share what is left, nats; 0 of one other label. The most probable label is
            at ``1 / (1 + e^rest)`` or above, where the entropy falls with its probability.
    """
    low, high = 1 / (1 + math.exp(rest)), 1.0
    for _ in range(40):
        middle = (low + high) / 2
        if entropy_of_two(middle) + (1 - middle) * rest > entropy:
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
