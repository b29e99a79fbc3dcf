"""What the served answers gain over temperature scaling, on rows that nothing was fitted on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from laplora.fitting.calibrate import predictive_of
from laplora.fitting.outputs import SplitOutputs
from laplora.metrics.paired import nll_difference
from laplora.predictive.kinds import PredictiveName


@dataclass(frozen=True)
class Gain:
    """The NLL of one predictive less that of temperature scaling on the same rows; below 0 is a gain.

    Attributes:
        predictive: its name.
        difference: nats, mean over rows.
        low, high: of its 95 % interval, by a bootstrap that draws whole inputs for both.
    """

    predictive: PredictiveName
    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return it in words."""
        verdict = "better" if self.high < 0 else "worse" if self.low > 0 else "within noise"
        return (
            f"NLL of {self.predictive} less that of temperature scaling: {self.difference:+.3f} "
            f"(95 % {self.low:+.3f} to {self.high:+.3f}), {verdict}"
        )


def gain_over_temperature(
    outputs: SplitOutputs, temperatures: Mapping[PredictiveName, float], name: PredictiveName
) -> Gain | None:
    """Return what one predictive gains; None for temperature scaling itself, and where there is none to compare with.

    Args:
        outputs: of rows that neither training nor calibration has seen.
        temperatures: of the fit's predictives, by name.
    """
    if name == "temperature" or "temperature" not in temperatures:
        return None
    split = outputs.split
    own, scaled = (predictive_of(outputs, one, temperatures[one]).probs for one in (name, "temperature"))
    found = nll_difference(own, scaled, split.labels, together=split.together)
    return Gain(name, found.difference, found.low, found.high)
