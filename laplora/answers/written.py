"""An answer as JSON has it: what ``POST /predict``, ``laplora predict`` and a report of rows are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from laplora.answers.reasons import decision_reason
from laplora.errors import NonFiniteError

if TYPE_CHECKING:
    from laplora.answers.prediction import Prediction

Detail = Literal["short", "full"]
#: The parts of an answer that have a number or more for each label.
LabelField = Literal[
    "probs", "map_probs", "probs_std", "calibrated_probs", "logit_mean", "logit_variance", "logit_covariance"
]
_LABEL_FIELDS: Final = frozenset[str](get_args(LabelField))
#: The fields of a short answer; those that are null are omitted.
_SHORT: Final = frozenset(
    {
        *(
            "id",
            "label",
            "labels",
            "expected_cost",
            "probs",
            "map_probs",
            "decision",
            "decision_reason",
            "prediction_set",
            "flags",
        ),
        *("uncertainty", "probs_std", "spread_of", "prediction_id"),
    }
)
#: Those of them that only the posterior gives: a head's spread finds mistakes and other inputs worse than
#: entropy and familiarity do.
_SPREAD: Final = frozenset({"uncertainty", "probs_std"})


@dataclass(frozen=True)
class Shown:
    """Which fields of an answer are written.

    Attributes:
        detail: ``short`` is what a caller acts on, ``full`` all but the covariance.
        fields: of those by label, these in place of the detail's; None: the detail's.
        variance: whether the posterior's spread was asked for; covariance: whether the logits' covariance was.
    """

    detail: Detail = "short"
    fields: tuple[LabelField, ...] | None = None
    variance: bool = False
    covariance: bool = False

    @property
    def has_variance(self) -> bool:
        """Whether an answer needs the posterior's spread."""
        return self.variance or "logit_variance" in (self.fields or ())

    @property
    def has_covariance(self) -> bool:
        """Whether an answer needs the logits' covariance."""
        return self.covariance or "logit_covariance" in (self.fields or ())

    def select(self, written: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a whole answer that are written: what was asked for by name also where it is null."""
        named = {*(self.fields or ()), *(("probs_std", "logit_variance", "uncertainty") if self.variance else ())}
        short = self.detail == "short"
        tells = written["answered_by"] == "laplace" or "spread_of" in written
        shown = _SHORT if tells else _SHORT - _SPREAD

        hidden = frozenset[str]() if self.fields is None else _LABEL_FIELDS
        return {
            name: value
            for name, value in written.items()
            if name in named or (name not in hidden and (not short or (name in shown and value is not None)))
        }


#: Every field but the covariance.
FULL: Final = Shown("full")


def written_answer(
    prediction: Prediction,
    fields: Mapping[str, Any],
    *,
    id: str | float | None = None,
    variance: bool = False,
    checked: bool = False,
) -> dict[str, Any]:
    """Return an answer's fields as JSON values, in the order in which they are written.

    Fields that were not requested, such as an id that the input lacks, are omitted; ``logit_covariance`` is always.

    Args:
        fields: of the input, by name.
        variance: whether an answer without a spread has the posterior's, with its name in ``spread_of``.
        checked: whether it is known that every number is finite.

    Raises:
        NonFiniteError: a number in it is not finite.
    """
    p = prediction
    if not checked and not p.finite:
        raise NonFiniteError("the model has no finite answer to this input: change it or leave it out")
    label, choices = p.labels[p.label_index], fields.get("choices")
    uncertainty, probs_std, spread_of = None, p.probs_std, None
    if p.aleatoric is not None and p.epistemic is not None:
        uncertainty = {"total": p.total, "aleatoric": p.aleatoric, "epistemic": p.epistemic}
    elif variance and p.posterior is not None:
        aleatoric, epistemic = p.posterior.aleatoric, p.posterior.epistemic
        uncertainty = {"total": aleatoric + epistemic, "aleatoric": aleatoric, "epistemic": epistemic}
        probs_std, spread_of = dict(zip(p.labels, p.posterior.std.tolist(), strict=True)), "laplace"
    written = {
        **({} if id is None else {"id": id}),
        "label": label,
        **({} if p.labels_present is None else {"labels": p.labels_present}),
        **({} if p.expected_cost is None else {"expected_cost": p.expected_cost}),
        "probs": p.probs,
        "map_probs": p.map_probs,
        "decision": p.decision,
        "decision_reason": "",
        "prediction_set": list(p.prediction_set),
        "flags": list(p.flags),
        "uncertainty": uncertainty,
        "probs_std": probs_std,
        **({} if spread_of is None else {"spread_of": spread_of}),
        "label_text": choices[p.label_index] if isinstance(choices, list | tuple) else label,
        "answered_by": p.predictive,
        "calibrated_probs": p.calibrated_probs,
        "logit_mean": p.logit_mean.tolist(),
        "logit_variance": None if p.logit_variance is None else p.logit_variance.tolist(),
        "label_mass": p.label_mass,
        "familiarity": p.familiarity,
        "score": p.score,
        "tokens": p.tokens,
        **({} if p.expected is None else {"expected_label": p.expected.place, "expected_label_std": p.expected.std}),
        "truncated": p.truncated,
    }
    written["decision_reason"] = decision_reason(written, p.rule)
    return written
