"""Batches that look at no posterior: by distance, by entropy, at random."""

from __future__ import annotations

import torch

from laplora.selection.greedy import Selection


def k_center(points: torch.Tensor, count: int, allowed: torch.Tensor) -> Selection:
    """Return the batch whose farthest point is always next, from the one nearest the mean on; gains are distances.

    The largest distance of a point from the batch is at most twice that of the best batch (Gonzalez 1985; Sener and
    Savarese, arXiv 1708.00489).

    Args:
        points: (rows, width); allowed: (rows,) bool, what may be chosen and is to be near.
    """
    x = points.double()
    squares = (x - x[allowed].mean(0)).square().sum(1).masked_fill(~allowed, torch.inf)
    nearest = torch.full((len(x),), torch.inf, dtype=torch.float64).masked_fill(~allowed, -1)
    order, gains = [int(squares.argmin())], [float(squares.min().sqrt())]
    while True:
        last = order[-1]
        nearest = torch.minimum(nearest, (x - x[last]).square().sum(1))
        nearest[last] = -1
        if len(order) >= min(count, int(allowed.sum())):
            return _selection(order, gains)
        order.append(int(nearest.argmax()))
        gains.append(float(nearest.max().sqrt()))


def highest(scores: torch.Tensor, count: int, allowed: torch.Tensor) -> Selection:
    """Return the rows of the highest scores (rows,), each of which is its gain; the first of equal ones first."""
    order = scores.double().masked_fill(~allowed, -torch.inf).argsort(descending=True, stable=True)
    order = order[: min(count, int(allowed.sum()))]
    return Selection(order, scores.double()[order])


def at_random(count: int, allowed: torch.Tensor, draw: torch.Generator) -> Selection:
    """Return a random batch; gains are 0."""
    places = allowed.nonzero()[:, 0]
    order = places[torch.randperm(len(places), generator=draw)[:count]]
    return Selection(order, torch.zeros(len(order), dtype=torch.float64))


def _selection(order: list[int], gains: list[float]) -> Selection:
    return Selection(torch.tensor(order), torch.tensor(gains, dtype=torch.float64))
