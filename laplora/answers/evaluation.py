"""From predictions and true labels to the metrics of every predictive: of a file, of POST /evaluate and of its jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from laplora.answers.labels import LabelNames, Truth
from laplora.answers.reasons import entropy_of_two
from laplora.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from laplora.answers.prediction import Prediction
    from laplora.artifact.manifest import Manifest
    from laplora.decisions.wanted import Costs, Wanted
    from laplora.metrics.scores import RowScores

#: An input's probabilities under one method, and the score that ranks its mistakes; None: their entropy. If several
#: labels may be right, the scores of the labels.
MethodRow = tuple[Sequence[float], float | Sequence[float] | None]

#: The method that every other NLL is compared with: one fitted number, at the price of MAP.
REFERENCE = "temperature"

#: Resamples that an interval is of at least.
_FEWEST_RESAMPLES = 10
#: Mistakes from which on their ranking has an interval.
_FEWEST_MISTAKES = 5


class HowMeasured(Protocol):
    """Bins of the ECE, and resamples and seed of the bootstrap."""

    bins: int
    resamples: int
    seed: int


@dataclass
class MeasureHow:
    """How a file is measured; without resamples (0) there are no intervals.

    Raises:
        ConfigError: fewer resamples than an interval can be of, and not none.
    """

    resamples: int = 1000
    #: Which the noise of an ECE is known for.
    bins: int = field(default=15, init=False)
    seed: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if 0 < self.resamples < _FEWEST_RESAMPLES:
            raise ConfigError(
                f"resamples (--resamples) is 0, which leaves the intervals out, or at least {_FEWEST_RESAMPLES}, not "
                f"{self.resamples}: 95 % intervals cannot be of so few"
            )


def method_rows(manifest: Manifest, answering: str, prediction: Prediction) -> dict[str, MethodRow]:
    """Return one input's numbers by method, ``answering`` the predictive that answers."""
    p, arrays = prediction, prediction.arrays
    at_map = {} if arrays.map_probs is None else {"map": arrays.map_probs.tolist()}
    probs = arrays.probs.tolist()
    calibrated = {name: of.tolist() for name, of in arrays.calibrated_probs.items()}
    if p.labels_present is not None:
        return _by_label(manifest, {**at_map, answering: probs, **calibrated})
    others: dict[str, MethodRow] = {name: (of, p.calibrated_scores[name]) for name, of in calibrated.items()}
    return {**{name: (of, None) for name, of in at_map.items()}, answering: (probs, p.score), **others}


def _by_label(manifest: Manifest, methods: Mapping[str, Sequence[float]]) -> dict[str, MethodRow]:
    """Return an input's probabilities with what ranks its labels (``laplora.decisions.uncertainty.review_score``)."""
    records = {str(name): record for name, record in manifest.predictives.items()}
    at_map = [entropy_of_two(p) for p in methods["map"]]
    return {
        name: (probs, None if records[name].thresholds.review.score == "total_entropy" else at_map)
        for name, probs in methods.items()
    }


def unfamiliar_share(manifest: Manifest, flags: Sequence[Sequence[str]]) -> float | None:
    """Return the share of answers with the flag ``unfamiliar``; None where the artifact does not tell.

    Args:
        flags: of each answer.
    """
    if manifest.familiarity is None or not flags:
        return None
    return sum("unfamiliar" in raised for raised in flags) / len(flags)


def decided_for(manifest: Manifest, name: str, wanted: Wanted | None) -> dict[str, Any]:
    """Return ``costs`` or ``target_risk``: those that decisions were made for; None is what the artifact states."""
    if wanted is None:
        (wanted,) = (of.thresholds.review.wanted for one, of in manifest.predictives.items() if one == name)
    return {"target_risk": wanted} if isinstance(wanted, float | int | Mapping) else {"costs": wanted}


def accepted_rows(
    answers: Sequence[tuple[str, Sequence[float]]],
    truths: Sequence[Truth],
    names: LabelNames,
    costs: Costs | None = None,
) -> dict[str, Any]:
    """Return how many answers their decision accepts, and how many of those are wrong, as JSON values.

    ``rows`` and ``share`` (0 to 1) are of answers. If several labels may be right, ``wrong`` and ``error_rate`` (0 to
    1) are of all labels of the accepted ones, as target risks are. ``error_rate`` and its 95 % ``interval``
    (``laplora.metrics.noise.share_interval``) are None if none is accepted. ``cost`` is there with costs, as
    of ``laplora.decisions.costs.cost_figures``.

    Args:
        answers: of each the decision, and the probabilities by label.
        costs: that they were decided for.
    """
    import torch

    from laplora.decisions.costs import cheapest, cost_figures
    from laplora.linearised import most_probable
    from laplora.metrics.noise import effective_rows, share_interval

    taken = torch.tensor([decision == "accept" for decision, _ in answers])
    found: dict[str, Any] = {"rows": int(taken.sum()), "share": float(taken.double().mean()), "wrong": 0}
    probs, right = questions([p for _, p in answers], truths, names)
    answered = probs.argmax(1)
    if costs is not None:
        matrix = costs.matrix(names.names)
        answered = cheapest(probs, matrix, probs > 0)[0]
        found["cost"] = cost_figures(matrix, costs.review, answered, right, taken)
    if not bool(taken.any()):
        return found | {"error_rate": None, "interval": None}
    wrong = (answered != most_probable(right))[taken.repeat_interleave(names.questions)]
    rate, rows = float(wrong.double().mean()), effective_rows(wrong, torch.arange(len(wrong)) // names.questions)
    interval = share_interval(rate * rows, rows)
    return found | {"wrong": int(wrong.sum()), "error_rate": rate, "interval": list(interval)}


def measure(
    rows: Sequence[Mapping[str, MethodRow]], truths: Sequence[Truth], *, names: LabelNames, how: HowMeasured
) -> dict[str, dict[str, Any]]:
    """Return the metrics of every method, by name, as ``measure_scores`` does; all rows have the same methods.

    If labels have an order, there are ``mae`` and ``rps`` too (``laplora.metrics.scores.order_errors``).

    Raises:
        NonFiniteError: a number that is not finite.
    """
    scores = {name: method_scores([row[name] for row in rows], truths, names) for name in rows[0]}
    scaled = scores[REFERENCE].nll if REFERENCE in scores else None
    found = {
        name: measure_scores(one, truths, names=names, how=how, scaled=None if name == REFERENCE else scaled)
        for name, one in scores.items()
    }
    for name, metrics in found.items() if names.ordered else ():
        from laplora.metrics.scores import order_errors

        metrics |= order_errors(*questions([row[name][0] for row in rows], truths, names))
    return found


def measure_file(
    manifest: Manifest, rows: Sequence[Mapping[str, MethodRow]], truths: Sequence[Truth], how: MeasureHow
) -> dict[str, dict[str, Any]]:
    """Return what ``measure`` does, with what few rows need.

    Beside it are the exact interval of the accuracy, and which ECE a calibrated model has by chance: ``ece_limit`` is
    passed by one in 40, and ``ece_excess`` is the ECE above it. If there are few mistakes, their ranking has no
    interval: a bootstrap knows too little then.

    Args:
        rows: at least one, of ``method_rows``; truths: of each row, of several labels any sequence.
    """
    from laplora.metrics.noise import calibrated_ece, share_interval

    names = LabelNames.of(manifest)
    methods = measure(rows, truths, names=names, how=how)
    for method, metrics in methods.items():
        scores = method_scores([row[method] for row in rows], truths, names)
        correct, count = int(scores.hits.sum()), len(scores.hits)
        metrics["intervals"]["accuracy"] = list(share_interval(correct, count))
        if count - correct < _FEWEST_MISTAKES:
            for name in ("auroc_error", "auprc_error", "aurc", "excess_aurc"):
                metrics["intervals"].pop(name, None)
        metrics["ece_limit"] = calibrated_ece(scores.confidence, chance=0.025).limit
        metrics["ece_excess"] = metrics["ece"] - metrics["ece_limit"]
    return methods


def method_scores(rows: Sequence[MethodRow], truths: Sequence[Truth], names: LabelNames) -> RowScores:
    """Return what one method's metrics are made of, of rows or, where several labels may be right, of questions."""
    import torch

    from laplora.metrics.scores import row_scores

    probs, right = questions([probs for probs, _ in rows], truths, names)
    scores = [score for _, score in rows if score is not None]
    return row_scores(probs, right, torch.tensor(scores, dtype=torch.float64).flatten() if scores else None)


def measure_scores(
    scores: RowScores,
    truths: Sequence[Truth],
    *,
    names: LabelNames,
    how: HowMeasured,
    scaled: torch.Tensor | None = None,
) -> dict[str, Any]:
    """Return one method's metrics as JSON values, of ``method_scores``; it ranks its mistakes by its score.

    If several labels may be right, the metrics are over all labels of all inputs, and those of each label are beside
    them.

    Args:
        scaled: the same questions' NLL by ``REFERENCE``, nats, which this one's is compared with; None, or without
            resamples: nothing is.
    """
    import torch

    from laplora.metrics.paired import mean_difference
    from laplora.metrics.scores import evaluate_rows, kl_of
    from laplora.metrics.several_labels import evaluate_labels

    options: dict[str, Any] = {"bins": how.bins, "resamples": how.resamples, "seed": how.seed}
    if names.several:
        whole, each = evaluate_labels(scores, right_answers(truths, names), together=names.questions, **options)
        metrics = whole.to_json() | each.to_json(names.names)
    else:
        whole = evaluate_rows(scores, **options)
        metrics = replace(whole, kl=kl_of(whole.nll, right_answers(truths, names))).to_json()
    del metrics["rows"]
    metrics["over_temperature"] = None
    if scaled is not None and how.resamples:
        inputs = torch.arange(len(scaled)) // names.questions
        drawn: dict[str, Any] = {"resamples": how.resamples, "seed": how.seed, "groups": inputs}
        metrics["over_temperature"] = asdict(mean_difference(scores.nll - scaled, **drawn))
    return metrics


def questions(
    rows: Sequence[Sequence[float]], truths: Sequence[Truth], labels: LabelNames
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the metrics are of: probabilities (rows, classes) float64, and ``right_answers``.

    If several labels may be right, an input is one row for each label, with the classes absent and present.

    Args:
        rows: the inputs' probabilities by label; one with fewer choices has probability 0 at the labels it cannot take.
    """
    import torch

    from laplora.metrics.several_labels import binary_probs

    right = right_answers(truths, labels)
    if not labels.several:
        count = len(labels.names)
        return torch.tensor([[*row, *[0.0] * (count - len(row))] for row in rows], dtype=torch.float64), right
    return binary_probs(torch.tensor(rows, dtype=torch.float64)), right


def right_answers(truths: Sequence[Truth], labels: LabelNames) -> torch.Tensor:
    """Return the right classes of ``questions``; if one is soft, (rows, classes) float64, the probabilities."""
    import torch

    if not labels.several:
        if all(isinstance(truth, int) for truth in truths):
            return torch.tensor(truths)
        hard = torch.eye(len(labels.names), dtype=torch.float64).tolist()
        return torch.tensor([hard[t] if isinstance(t, int) else t for t in truths], dtype=torch.float64)
    right = torch.zeros(len(truths), len(labels.names), dtype=torch.int64)
    for row, places in zip(right, truths, strict=True):
        row[[places] if isinstance(places, int) else list(places)] = 1
    return right.flatten()
