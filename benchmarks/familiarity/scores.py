"""Scores that could tell strangers, higher meaning stranger, and what each tells of a home's strangers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.familiarity.models import Shown
from laplora.familiarity.mahalanobis import fit_layer
from laplora.familiarity.percentile import false_alarms, is_unfamiliar, watched_layers
from laplora.familiarity.strangeness import divergence, fit_strangeness
from laplora.jacobians.states import States
from laplora.linearised import contrast_mean, entropy
from laplora.metrics.detection import detection

Score = Callable[[Shown], torch.Tensor]
_NEIGHBOURS = 10
#: Draws of calibration rows from a home's pool, and their numbers.
_DRAWS = 200
CALIBRATION = (20, 50, 100, 150, 300)


def scores(train: Shown, labels: torch.Tensor, *, ends_alike: bool) -> dict[str, Score]:
    """Return every score by name, fitted to training rows."""
    layers = train.hidden.shape[1]
    watched, last = watched_layers(layers, ends_alike=ends_alike), layers - 1
    fitted = fit_strangeness(seen(train, watched), labels)
    distances = replace(fitted, weight=0.0)
    by_class, together = (fit_layer(train.hidden[:, last], of) for of in (labels, torch.zeros_like(labels)))
    known = torch.nn.functional.normalize(train.hidden[:, last].double(), dim=1)

    def neighbour(shown: Shown) -> torch.Tensor:
        new = torch.nn.functional.normalize(shown.hidden[:, last].double(), dim=1)
        return -(new @ known.T).topk(_NEIGHBOURS, 1).values[:, -1]

    return {
        "familiarity": lambda shown: fitted.of(seen(shown, watched)),
        "familiarity, distances alone": lambda shown: distances.of(seen(shown, watched)),
        "Mahalanobis, last layer": lambda shown: by_class.squared(shown.hidden[:, last]),
        "relative Mahalanobis, last layer": lambda shown: (
            by_class.squared(shown.hidden[:, last]) - together.squared(shown.hidden[:, last])
        ),
        f"{_NEIGHBOURS} nearest neighbours, last layer": neighbour,
        "energy": lambda shown: -shown.logits.double().logsumexp(1),
        "energy, of logits less their mean": lambda shown: -divergence(seen(shown, ())),
        "entropy": lambda shown: entropy(shown.logits.double().softmax(1)),
        "1 - max softmax": lambda shown: 1 - shown.logits.double().softmax(1).amax(1),
    }


def detections(
    found: Mapping[str, Score], pool: Shown, strangers: Mapping[str, Shown]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return by score and set the AUROC with its 95 % interval."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, score in found.items():
        inside = score(pool)
        table[name] = {title: told(inside, score(shown)) for title, shown in strangers.items()}
    return table


def told(inside: torch.Tensor, outside: torch.Tensor) -> dict[str, float]:
    """Return what one score tells of one set."""
    measured = detection(inside, outside)
    names = ("auroc", "low", "high", "outside")
    return {name: round(float(getattr(measured, name)), 4) for name in names}


def flags(
    train: Shown, labels: torch.Tensor, pool: Shown, strangers: Mapping[str, Shown], *, ends_alike: bool, rate: float
) -> list[dict[str, Any]]:
    """Return for each number of calibration rows which share the flag is raised on, over draws of them from the pool.

    The rest of the pool are new rows. ``familiar`` is their share, ``low`` and ``high`` its 5 % and 95 % quantile over
    the draws, ``strangers`` by set the mean share.
    """
    watched = watched_layers(train.hidden.shape[1], ends_alike=ends_alike)
    fitted = fit_strangeness(seen(train, watched), labels)
    inside = fitted.of(seen(pool, watched))
    outside = {title: fitted.of(seen(shown, watched)) for title, shown in strangers.items()}
    rows = []
    for count in CALIBRATION:
        if count > len(inside) - 100:
            continue
        shares, found = [], {title: 0.0 for title in outside}
        for draw in range(_DRAWS):
            order = torch.randperm(len(inside), generator=torch.Generator().manual_seed(draw))
            reference, new = inside[order[:count]], inside[order[count:]]
            shares.append(_share(new, reference, rate))
            for title, values in outside.items():
                found[title] += _share(values, reference, rate) / _DRAWS
        drawn = torch.tensor(shares)
        rows.append(
            {
                "calibration": count,
                "stated": round(false_alarms(rate, count), 4),
                "familiar": round(float(drawn.mean()), 4),
                "low": round(float(drawn.quantile(0.05)), 4),
                "high": round(float(drawn.quantile(0.95)), 4),
                "strangers": {title: round(share, 4) for title, share in found.items()},
            }
        )
    return rows


def seen(shown: Shown, watched: tuple[int, ...]) -> States:
    """Return the states that familiarity sees, after some layers."""
    return States(watched, shown.hidden[:, watched], contrast_mean(shown.logits.double()))


def _share(values: torch.Tensor, reference: torch.Tensor, rate: float) -> float:
    at_least = len(reference) - torch.searchsorted(reference.sort().values, values)
    familiarity = (1 + at_least).double() / (1 + len(reference))
    return float(is_unfamiliar(familiarity, false_alarms(rate, len(reference))).double().mean())
