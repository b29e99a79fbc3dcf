"""Out-of-distribution scores, higher for less familiar inputs, and how well each detects a home's sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from benchmarks.familiarity.models import Shown
from laplora.familiarity.ood_score import divergence, fit_ood_score
from laplora.familiarity.percentile import false_alarms, is_unfamiliar, watched_layers
from laplora.jacobians.states import States
from laplora.linearised import contrast_mean, entropy
from laplora.metrics.ranking import compare_auroc

Score = Callable[[Shown], torch.Tensor]
_NEIGHBOURS = 10
#: The layers whose last token's states were compared before.
MIDDLE = (7, 10, 13, 16, 19, 22)
#: Draws of calibration rows from a home's pool, and their numbers.
_DRAWS = 200
CALIBRATION = (20, 50, 100, 150, 300)


def scores(train: Shown, labels: torch.Tensor, *, ends_alike: bool) -> dict[str, Score]:
    """Return every score by name, fitted to training rows."""
    layers = train.hidden.shape[1]
    watched = watched_layers(layers, ends_alike=ends_alike)
    middle = tuple(number for number in MIDDLE if ends_alike and number < layers) or (layers - 1,)
    fitted = fit_ood_score(seen(train, watched), labels, by_logits=not ends_alike)
    logits = fit_ood_score(seen(train, watched), labels)
    before = fit_ood_score(seen(train, middle, last=True), labels)
    known = torch.nn.functional.normalize(train.hidden[:, watched[-1]].double(), dim=1)

    def neighbour(shown: Shown) -> torch.Tensor:
        new = torch.nn.functional.normalize(shown.hidden[:, watched[-1]].double(), dim=1)
        return -(new @ known.T).topk(_NEIGHBOURS, 1).values[:, -1]

    return {
        "familiarity": lambda shown: fitted.of(seen(shown, watched)),
        "distances alone": lambda shown: replace(logits, weight=0.0).of(seen(shown, watched)),
        "distances and logits": lambda shown: logits.of(seen(shown, watched)),
        "the last token's distances and logits": lambda shown: before.of(seen(shown, middle, last=True)),
        f"{_NEIGHBOURS} nearest neighbours": neighbour,
        "energy, of logits less their mean": lambda shown: -divergence(seen(shown, ())),
        "entropy": lambda shown: entropy(shown.logits.double().softmax(1)),
    }


def detections(
    found: Mapping[str, Score], pool: Shown, out_of_distribution: Mapping[str, Shown]
) -> dict[str, dict[str, dict[str, float]]]:
    """Return by score and set the AUROC with its 95 % interval."""
    table: dict[str, dict[str, dict[str, float]]] = {}
    for name, score in found.items():
        inside = score(pool)
        table[name] = {title: separation(inside, score(shown)) for title, shown in out_of_distribution.items()}
    return table


def separation(inside: torch.Tensor, outside: torch.Tensor) -> dict[str, float]:
    """Return the AUROC of one score and one set, and its 95 % interval (DeLong, DeLong and Clarke-Pearson 1988)."""
    score, found = torch.cat([inside, outside]), torch.arange(len(inside) + len(outside)) >= len(inside)
    # A score that is the same for every row has an AUROC of exactly 1/2 and no variance.
    lead, error = compare_auroc(score, torch.zeros_like(score), found)
    auroc, half = 0.5 + lead, 1.959964 * error
    figures = {"auroc": auroc, "low": max(0.0, auroc - half), "high": min(1.0, auroc + half)}
    return {name: round(figure, 4) for name, figure in figures.items()} | {"outside": float(len(outside))}


def flags(
    inside: torch.Tensor, calibration: int, outside: Mapping[str, torch.Tensor], rate: float
) -> list[dict[str, Any]]:
    """Return for each number of calibration rows which share the flag is raised on, over draws of them.

    The other rows are new ones. ``familiar`` is their share, ``low`` and ``high`` its 5 % and 95 % quantile over the
    draws, ``out_of_distribution`` by set the mean share. The first has the home's own calibration rows, in one draw.

    Args:
        inside: (rows,) score of rows like the training rows, of which the first ``calibration`` calibrate.
        outside: by set.
    """
    rows = [("own", calibration, [torch.arange(len(inside))])]
    for count in CALIBRATION:
        if count <= len(inside) - 100:
            draws = (torch.Generator().manual_seed(draw) for draw in range(_DRAWS))
            rows.append(("drawn", count, [torch.randperm(len(inside), generator=draw) for draw in draws]))
    found = []
    for kind, count, every in rows:
        shares = torch.tensor([_share(inside[order[count:]], inside[order[:count]], rate) for order in every])
        strange = {
            title: sum(_share(values, inside[order[:count]], rate) for order in every) / len(every)
            for title, values in outside.items()
        }
        found.append(
            {
                "kind": kind,
                "calibration": count,
                "stated": round(false_alarms(rate, count), 4),
                "familiar": round(float(shares.mean()), 4),
                "low": round(float(shares.quantile(0.05)), 4),
                "high": round(float(shares.quantile(0.95)), 4),
                "out_of_distribution": {title: round(share, 4) for title, share in strange.items()},
            }
        )
    return found


def seen(shown: Shown, watched: tuple[int, ...], *, last: bool = False) -> States:
    """Return the states after some layers as familiarity sees them, or those of the last token."""
    hidden = shown.last if last else shown.hidden
    return States(watched, hidden[:, watched], contrast_mean(shown.logits.double()))


def _share(values: torch.Tensor, reference: torch.Tensor, rate: float) -> float:
    at_least = len(reference) - torch.searchsorted(reference.sort().values, values)
    familiarity = (1 + at_least).double() / (1 + len(reference))
    return float(is_unfamiliar(familiarity, false_alarms(rate, len(reference))).double().mean())
