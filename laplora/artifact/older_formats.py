"""Manifests of older formats as what they are in the present one."""

from __future__ import annotations

from typing import Any


def upgraded(fields: dict[str, Any], version: int) -> dict[str, Any]:
    """Return a manifest's fields of a format as the present one has them.

    Raises:
        KeyError, TypeError, AttributeError: not a manifest of that format.
    """
    if version == 1:
        fields = _second(fields)
    if version < 3:
        fields = {**fields, "format_version": 3, "distilled": None}
    if version < 4:
        fields = _fourth(fields)
    return fields


def _fourth(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest's fields of format 3 as format 4 has them: nothing was cross-fitted."""
    distilled, calibration = fields["distilled"], fields["calibration"]
    return {
        **fields,
        "format_version": 4,
        "distilled": distilled and {**distilled, "false_alarms": None},
        "calibration": {**calibration, "folds": None},
    }


def _second(fields: dict[str, Any]) -> dict[str, Any]:
    """Return a manifest's fields of format 1, with its two modes and one temperature, as format 2 has them.

    Mode ``laplace`` becomes the recommended predictive. The temperature has no thresholds of its own there: it is
    reported beside an answer, and serves none.
    """
    calibration = fields["calibration"]
    thresholds, conformal = calibration["thresholds"], calibration["conformal"]

    def single(covariance: bool, temperature: float, mode: str | None) -> dict[str, Any]:
        return {
            "members": "single",
            "member_count": 1,
            "covariance": covariance,
            "temperature": temperature,
            "nll": None,
            "thresholds": mode and thresholds[mode],
            "conformal": mode and conformal[mode],
        }

    return {
        **fields,
        "format_version": 2,
        "members": [],
        "dropout": None,
        "calibration": {
            "split": thresholds["split"],
            "rows": calibration["rows"],
            "coverage": calibration["coverage"],
            "conformal": "lac",
            "scores": None,
        },
        "predictives": {
            "map": single(False, 1.0, "map"),
            "temperature": single(False, calibration["temperature"], None),
            "laplace": single(True, 1.0, "laplace"),
        },
        "recommended": {
            "predictive": "laplace",
            "reason": "the posterior predictive is what artifacts of format 1 serve",
            "chosen_by": "configuration",
            "table": {},
        },
    }
