"""Bars of ``--fail-if``: what is one, and when it fails."""

from __future__ import annotations

from typing import Any

import pytest

from laplora.commands.bars import Bar
from laplora.errors import ConfigError

METRICS: dict[str, dict[str, Any]] = {
    "map": {"ece": 0.2, "accuracy": 0.8, "auroc_error": None, "intervals": {"accuracy": [0.7, 0.85]}},
    "laplace": {"ece": 0.04, "accuracy": 0.8, "ece_excess": -0.01, "intervals": {"accuracy": [0.75, 0.84]}},
}


@pytest.mark.parametrize(
    ("text", "value", "failed"),
    [
        ("ece>0.05", 0.04, False),
        ("ece>.03", 0.04, True),
        (" ece >= 4e-2 ", 0.04, True),
        ("map.ece>0.05", 0.2, True),
        ("accuracy<0.8", 0.8, False),
        ("accuracy<=0.8", 0.8, True),
        ("accuracy.low<0.7", 0.75, False),
        ("ece_excess>0", -0.01, False),
        ("map.accuracy.high>0.8", 0.85, True),
        ("map.auroc_error<0.6", None, True),  # not measured: a script must not go on as if it had been
    ],
)
def test_it_fails_where_it_is_crossed(text: str, value: float | None, failed: bool) -> None:
    crossed = Bar.parse(text).check(METRICS, "laplace")
    assert (crossed.value, crossed.failed) == (value, failed)
    assert crossed.predictive == ("map" if "map" in text else "laplace")


NO_BARS = ["", "ece", "ece>", "ece=0.05", "ece>five", "0.05<ece", "a.b.c>1", "ece>1..2", "ece>nan", ".ece>1", "ece>1;x"]


@pytest.mark.parametrize("text", [*NO_BARS, "eces>0.05", "reliability>0", "auroc<0.5"])
def test_what_is_no_bar_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--fail-if"):
        Bar.parse(text)


def test_what_was_not_measured_is_named_with_what_was() -> None:
    for text, named in (("mapp.ece>0.05", "map, laplace"), ("nll.low<0.5", "accuracy")):
        with pytest.raises(ConfigError, match=named):
            Bar.parse(text).check(METRICS, "laplace")
    with pytest.raises(ConfigError, match="ece_excess>0"):  # the interval of an ECE, with what to use instead
        Bar.parse("ece.low>0.05")
    # A predictive that there is not is named before anything runs.
    Bar.parse("map.ece>1").check_predictive(("map", "laplace"))
    with pytest.raises(ConfigError, match=r"map, laplace$"):
        Bar.parse("mapp.ece>1").check_predictive(("map", "laplace"))
