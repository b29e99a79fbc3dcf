"""Why a row is accepted or goes to review, in one sentence with figures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laplora.decisions.thresholds import Flag, ReviewRule

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction


@dataclass(frozen=True)
class Decided:
    """What a decision was made of.

    Attributes:
        rule: what the score was compared with; score: of the answer, nats.
        label: the answer's; labels: how many the row can have; several: whether several of them may be right.
        map_label: the label that the model alone favours; None without one.
        flags: of the answer; familiarity, epistemic (nats), label_mass: what they are of, None where there is none.
    """

    rule: ReviewRule
    score: float
    label: str
    labels: int
    several: bool
    map_label: str | None
    flags: Sequence[Flag]
    familiarity: float | None
    epistemic: float | None
    label_mass: float | None

    @classmethod
    def of(cls, p: Prediction) -> Decided:
        """Return that of a prediction."""
        at_map = None if p.arrays.map_probs is None else p.labels[int(p.arrays.map_probs.argmax())]
        counts = p.label, len(p.labels), p.labels_present is not None
        return cls(p.rule, p.score, *counts, at_map, p.flags, p.familiarity, p.epistemic, p.label_mass)

    @classmethod
    def of_written(cls, written: Mapping[str, Any], rule: ReviewRule) -> Decided:
        """Return that of a whole answer as ``laplora.answers.written`` writes it."""
        w, map_probs = written, written["map_probs"]
        at_map = None if map_probs is None else max(map_probs, key=map_probs.__getitem__)
        counts = w["label"], len(w["probs"]), "labels" in w
        epistemic = (w["uncertainty"] or {}).get("epistemic")
        return cls(rule, w["score"], *counts, at_map, w["flags"], w["familiarity"], epistemic, w["label_mass"])

    @property
    def other_label(self) -> str | None:
        """The label that the model alone favours, where it is another than the answer's."""
        return None if self.several or self.map_label in (None, self.label) else self.map_label


#: What the flags say that send a row to review whatever its score is.
_FLAGS: Mapping[Flag, Callable[[Decided], str]] = {
    # The flag is of a measured familiarity.
    "unfamiliar": lambda d: (
        f"unlike the training rows: {_percent(d.familiarity or 0, 2)} of the calibration rows are as unusual"
    ),
    "high_epistemic": lambda d: f"plausible weights disagree by {d.epistemic or 0:.2g} nats",
    "low_label_mass": lambda d: f"the labels have {d.label_mass or 0:.2g} of the model's probability",
    "truncated": lambda d: "the input was cut",
}


def decision_reason(decided: Decided) -> str:
    """Return why an answer has its decision, such as ``0.82 is below 0.91, from which at most 5 % err``.

    The two figures are probabilities where the row has two labels, or several may be right: then an entropy and a
    probability say the same. Of more labels they are entropies, nats. Where ``map_probs`` favour another label than
    ``probs``, the sentence says so.
    """
    d = decided
    reasons = [_FLAGS[flag](d) for flag in d.flags if flag in _FLAGS]
    if not reasons or "low_confidence" in d.flags:
        reasons.append(_compared(d))
    return ", and ".join(reasons) + ("" if d.other_label is None else f"; map_probs favours {d.other_label!r}")


def _compared(d: Decided) -> str:
    """Return what the score says beside its threshold."""
    rule = d.rule
    err = f"at most {_percent(rule.target_risk)} err"
    if rule.threshold is None:
        return f"no threshold reaches {_percent(rule.target_risk)}"
    if rule.guarantee == "upper_bound":
        err = f"at most {_percent(rule.target_risk)} of the answers are accepted and wrong"
        if d.other_label is not None:
            return "only answers on which map_probs agree are accepted"
    accepted, by = d.score <= rule.threshold, " by map_probs" if rule.score == "map_entropy" else ""
    if d.labels == 2 or d.several:
        mine, limit = _figures(_probability(d.score), _probability(rule.threshold))
        least = " of the least sure label" if d.several else ""
        return f"{mine}{least}{by} is {'at least' if accepted else 'below'} {limit}, from which {err}"
    mine, limit = _figures(d.score, rule.threshold)
    return f"the entropy{by} of {mine} nats is {'at most' if accepted else 'above'} {limit}, up to which {err}"


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
    """Return two figures with as few digits, 2 to 6, as tell them apart, and what is less than 1 from 1."""
    for digits in range(2, 7):
        texts = f"{one:.{digits}f}", f"{other:.{digits}f}"
        if (texts[0] != texts[1] or one == other) and "1." not in (texts[0][:2], texts[1][:2]):
            break
    return texts


def _percent(share: float, digits: int = 3) -> str:
    return f"{100 * share:.{digits}g} %"
