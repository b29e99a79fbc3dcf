"""Minimising a function of one variable that need not be convex: a grid, then Brent's method around its best point."""

from __future__ import annotations

from collections.abc import Callable

#: Stands for an infinite value, which interpolation cannot take.
_HUGE = 1e30


def grid_minimum(
    function: Callable[[float], float], low: float, high: float, *, points: int, tolerance: float
) -> float:
    """Return the minimiser of a function between two bounds, to an absolute tolerance around the best grid point.

    Args:
        function: infinite where a point is infeasible.
        points: of the even grid from ``low`` to ``high``.
    """
    from scipy import optimize

    def finite(point: float) -> float:
        return min(function(float(point)), _HUGE)

    grid = [low + (high - low) * i / (points - 1) for i in range(points)]
    values = [finite(point) for point in grid]
    best = min(range(points), key=values.__getitem__)
    around = (grid[max(best - 1, 0)], grid[min(best + 1, points - 1)])
    refined = optimize.minimize_scalar(finite, bounds=around, method="bounded", options={"xatol": tolerance})
    return float(refined.x) if refined.fun < values[best] else grid[best]
