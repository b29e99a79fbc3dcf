"""Every alternative, one file a family: a function from a unit's arrays and a calibration draw to an ``Answer``.

``base`` says what a method is, ``METHODS`` lists them. A new family gets a file and its lines in the list.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from benchmarks.evidence.methods import averages, recalibration, review
from benchmarks.evidence.methods.base import (
    Answer,
    Answers,
    Method,
    anywhere,
    jacobian_passes,
    one_pass,
    passes,
    two_classes,
)
from benchmarks.evidence.methods.conditioned import conditioned, laplace_conditioned
from benchmarks.evidence.methods.laplace import laplace, laplace_temperature, log_probs
from benchmarks.evidence.outputs import LAST_LAYER, Outputs
from benchmarks.evidence.versions import MEMBER_VERSIONS
from laplora.conditioning.choice import VARIANCES

__all__ = ["METHODS", "REFERENCE", "RETRAINED", "Answer", "Method"]

#: What every method is compared with.
REFERENCE = "temperature"
#: What the calibration labels give as training rows; its temperature is of labels that no other method sees.
RETRAINED = "retrained"

#: Maps on top of a method's logits: name, title, fit, and where they apply.
_MAPS = (
    ("temperature", "temperature scaling", recalibration.temperature, anywhere),
    ("ts_mix", "temperature, smoothed", recalibration.smoothed_temperature, anywhere),
    ("ets", "ensemble temperature", recalibration.ensemble_temperature, anywhere),
    ("vector", "vector scaling", recalibration.vector, anywhere),
    ("svs", "structured vector scaling", recalibration.structured_vector, anywhere),
    ("sms", "structured matrix scaling", recalibration.structured_matrix, anywhere),
    ("platt", "Platt scaling", recalibration.platt, two_classes),
    ("beta", "beta calibration", recalibration.beta, two_classes),
)


#: Review scores on conditioned answers: name, title, score.
_REVIEW_SCORES = (
    ("huq", "HUQ: entropy and distance", review.huq),
    ("satrmd", "SATRMD: distances by layer", review.satrmd),
    ("learned", "logistic regression on four signs", review.learned),
)

_HAS_FOLDS = averages.has("folds")
#: Members around one adapter: the name of their file, title, and how many.
_MEMBERS = (
    ("dropout", "10 dropout masks", 10),
    ("swag", "SWAG, 10 samples", 10),
    ("tfb", "training-free Bayesian, 10 samples", 10),
    ("orders", "2 orders of the options", 2),
)


def _map(outputs: Outputs, _: int) -> Answer:
    return Answer(outputs.test.logits.softmax(1))


def _on_map(fit: recalibration.Fit) -> Answers:
    def answer(outputs: Outputs, draw: int) -> Answer:
        rows = outputs.calibration(draw)
        return Answer(fit(rows.logits, rows.labels)(outputs.test.logits))

    return answer


def _on_laplace(fit: recalibration.Fit) -> Answers:
    of = partial(log_probs, "all")

    def answer(outputs: Outputs, draw: int) -> Answer:
        calibration, test = of(outputs, draw)
        return Answer(fit(calibration, outputs.calibration(draw).labels)(test))

    return answer


def has_grams(outputs: Outputs) -> bool:
    """Return whether a unit's Jacobians were computed; with a head there are too many classes for any posterior."""
    return (outputs.unit.folder / "gram.all.safetensors").is_file()


def _with_grams(applies: Callable[[Outputs], bool]) -> Callable[[Outputs], bool]:
    return lambda outputs: has_grams(outputs) and applies(outputs)


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("map", "MAP", one_pass, _map),
        *(Method(name, title, one_pass, _on_map(fit), applies) for name, title, fit, applies in _MAPS),
        *(
            Method(f"laplace_{name}", f"Laplace, {title}", jacobian_passes, _on_laplace(fit), _with_grams(applies))
            for name, title, fit, applies in _MAPS
            if name != "temperature"
        ),
        Method("laplace", "Laplace", jacobian_passes, laplace("all"), has_grams),
        Method("laplace_temperature", "Laplace + temperature", jacobian_passes, laplace_temperature("all"), has_grams),
        Method("conditioned", "temperature, conditioned", one_pass, conditioned(), version=2),
        Method("conditioned_states", "the same, no constant", one_pass, conditioned(biases=(0.0,))),
        Method(
            "conditioned_constant",
            "the same, a constant alone",
            one_pass,
            conditioned(variances=VARIANCES[:1]),
            version=2,
        ),
        Method("laplace_conditioned", "Laplace, conditioned", jacobian_passes, laplace_conditioned(), has_grams),
        *(
            Method(
                f"conditioned_{name}",
                title,
                one_pass,
                review.reviewed(score),
                averages.has("layers"),
                reviews="conditioned",
            )
            for name, title, score in _REVIEW_SCORES
        ),
        Method("laplace_values", "Laplace, values' B alone", jacobian_passes, laplace("values_b"), has_grams),
        Method("last_layer", "last-layer Laplace", one_pass, laplace(LAST_LAYER), has_grams),
        Method(
            "last_layer_temperature", "last layer + temperature", one_pass, laplace_temperature(LAST_LAYER), has_grams
        ),
        Method(RETRAINED, "retrained on all labels", one_pass, averages.retrained, averages.has("retrained"), draws=1),
        Method("retrained_folds", "all labels, cross-fitted", one_pass, averages.retrained_folds, _HAS_FOLDS, draws=1),
        Method("cross_fitted", "5 cross-fitted adapters", passes(5), averages.cross_fitted, _HAS_FOLDS, draws=1),
        Method("student", "student of the 5", one_pass, averages.student, averages.has("student"), draws=1),
        *(
            method
            for kind, title, count in _MEMBERS
            for method in (
                Method(
                    kind,
                    title,
                    passes(count),
                    averages.members(kind),
                    averages.has_kind(kind),
                    version=MEMBER_VERSIONS.get(kind, 1),
                ),
                Method(
                    f"{kind}_temperature",
                    f"{title} + temperature",
                    passes(count),
                    averages.members_temperature(kind),
                    averages.has_kind(kind),
                    version=MEMBER_VERSIONS.get(kind, 1),
                ),
            )
        ),
    )
}
