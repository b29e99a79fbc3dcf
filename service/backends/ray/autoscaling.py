"""How many scorers there should be: as many as the tokens that wait need. Read by Ray Serve's controller.

The controller pickles it by value: it needs nothing of this module or of laplora.
"""

from __future__ import annotations

from typing import Any


class TokensPolicy:
    """A policy for ``AutoscalingPolicy``: the tokens that wait at all replicas, over what may wait at one.

    Args:
        target_tokens: that may wait at one replica.
    """

    #: The name of waiting tokens in a scorer's ``record_autoscaling_stats``.
    METRIC = "queue_tokens"

    def __init__(self, target_tokens: int) -> None:
        self._target = target_tokens

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:
        """Return the wanted number of replicas; Ray Serve applies its bounds and delays."""
        waiting = sum((context.aggregated_metrics or {}).get(self.METRIC, {}).values())
        return max(1.0, waiting / self._target), {}
