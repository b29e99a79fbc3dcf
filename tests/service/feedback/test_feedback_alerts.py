"""The Prometheus rules of calibration in production: each fires on what it is for, and is quiet within the noise."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from server_process import ROOT
from serving import Served

RULES = ROOT / "docker" / "monitoring" / "calibration-alerts.yaml"
PROMTOOL = shutil.which("promtool")
OWN = {"artifact": "a", "predictive": "laplace", "instance": "one"}
#: What every case starts from: enough rows, and every figure within its limit.
QUIET = {
    "laplora_feedback_rows": 200.0,
    "laplora_feedback_recent_rows": 200.0,
    "laplora_feedback_accepted_rows": 100.0,
    "laplora_feedback_nll": 0.40,
    "laplora_feedback_nll_limit": 0.45,
    "laplora_feedback_ece": 0.05,
    "laplora_feedback_ece_limit": 0.07,
    "laplora_feedback_coverage": 0.88,
    "laplora_feedback_coverage_limit": 0.80,
    "laplora_feedback_accepted_risk": 0.08,
    "laplora_feedback_accepted_risk_limit": 0.12,
    "laplora_feedback_map_gain": -0.01,
    "laplora_feedback_map_gain_limit": -0.05,
}


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


def series(values: dict[str, float], **labels: str) -> list[dict[str, str]]:
    inside = ",".join(f'{name}="{value}"' for name, value in (OWN | labels).items())
    return [{"series": f"{name}{{{inside}}}", "values": f"{value}x90"} for name, value in values.items()]


def drift(signal: str, reference: str, gap: float, p_value: float) -> list[dict[str, str]]:
    names = {f"laplora_{signal}_drift": gap, f"laplora_{signal}_drift_p_value": p_value}
    return series(names, reference=reference)


def items(**per_minute: int) -> list[dict[str, str]]:
    return [
        {"series": f'laplora_feedback_items_total{{status="{status}",instance="one"}}', "values": f"0+{count}x150"}
        for status, count in per_minute.items()
    ]


def firing(tmp_path: Path, given: list[dict[str, str]], expected: dict[str, list[dict[str, str]]], at: str) -> None:
    """Check with promtool that exactly these alerts fire, with these labels beside their severity."""
    wanted = []
    for rule in rules():
        found = [{"exp_labels": labels | rule["labels"]} for labels in expected.get(rule["alert"], [])]
        wanted.append({"eval_time": at, "alertname": rule["alert"], "exp_alerts": found})
    # The texts are not compared: promtool wants all or none, so they are left out of the rules under test.
    plain = [{key: value for key, value in rule.items() if key != "annotations"} for rule in rules()]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "own", "rules": plain}]}))
    test = {"interval": "1m", "input_series": given, "alert_rule_test": wanted}
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}))
    assert PROMTOOL is not None
    found = subprocess.run([PROMTOOL, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr


needs_promtool = pytest.mark.skipif(PROMTOOL is None, reason="promtool is not installed")

CASES: dict[str, tuple[dict[str, float], list[str]]] = {
    "within every limit": ({}, []),
    "nll": ({"laplora_feedback_nll": 0.46}, ["LaploraNllAboveReference"]),
    "ece": ({"laplora_feedback_ece": 0.08}, ["LaploraEceAboveNoise"]),
    "coverage": ({"laplora_feedback_coverage": 0.79}, ["LaploraCoverageBelowLevel"]),
    "accepted risk": ({"laplora_feedback_accepted_risk": 0.13}, ["LaploraAcceptedRiskAboveTarget"]),
    "worse than map": ({"laplora_feedback_map_gain": -0.06}, ["LaploraWorseThanMap"]),
    "too few accepted": ({"laplora_feedback_accepted_risk": 0.5, "laplora_feedback_accepted_rows": 99.0}, []),
    "too few rows": (
        {
            "laplora_feedback_rows": 199.0,
            "laplora_feedback_nll": 9.0,
            "laplora_feedback_ece": 0.9,
            "laplora_feedback_coverage": 0.1,
            "laplora_feedback_map_gain": -9.0,
        },
        [],
    ),
}


@needs_promtool
@pytest.mark.parametrize("name", CASES)
def test_labelled_predictions(name: str, tmp_path: Path) -> None:
    changed, alerts = CASES[name]
    firing(tmp_path, series(QUIET | changed), {alert: [OWN] for alert in alerts}, "20m")
    # Not before it has lasted.
    firing(tmp_path, series(QUIET | changed), {}, "10m")


@needs_promtool
def test_without_a_limit_nothing_fires(tmp_path: Path) -> None:
    values = {name: 9.0 for name in QUIET if not name.endswith("_limit")}
    firing(tmp_path, series(values), {}, "20m")


@needs_promtool
@pytest.mark.parametrize("signal", ["epistemic", "confidence", "score"])
@pytest.mark.parametrize(
    ("gap", "p_value", "rows", "fires"),
    [(0.2, 0.0001, 200.0, True), (0.2, 0.01, 200.0, False), (0.05, 0.0001, 200.0, False), (0.2, 0.0001, 199.0, False)],
)
def test_drift(signal: str, gap: float, p_value: float, rows: float, fires: bool, tmp_path: Path) -> None:
    given = series(QUIET | {"laplora_feedback_recent_rows": rows}) + drift(signal, "activation", gap, p_value)
    # Another instance with enough rows says nothing of this one.
    given += series({"laplora_feedback_recent_rows": 1000.0}, instance="two")
    alert = f"Laplora{signal.capitalize()}Drift"
    firing(tmp_path, given, {alert: [OWN | {"reference": "activation"}]} if fires else {}, "20m")


@needs_promtool
def test_between_two_classes_the_score_does_not_repeat_the_confidence(tmp_path: Path) -> None:
    given = series(QUIET) + drift("score", "calibration", 0.3, 1e-6) + drift("confidence", "calibration", 0.3, 1e-6)
    firing(tmp_path, given, {"LaploraConfidenceDrift": [OWN | {"reference": "calibration"}]}, "20m")


@needs_promtool
@pytest.mark.parametrize(("unknown", "fires"), [(30, True), (5, False)])
def test_labels_that_come_too_late(unknown: int, fires: bool, tmp_path: Path) -> None:
    given = items(recorded=10, unknown=unknown)
    firing(tmp_path, given, {"LaploraFeedbackUnknown": [{"instance": "one"}] if fires else []}, "2h")


@pytest.mark.anyio
async def test_the_rules_name_gauges_that_the_server_has(served: Served) -> None:
    named = {name for rule in rules() for name in re.findall(r"\blaplora_\w+", rule["expr"])}
    given = (await served.predict("a 7")).json()["predictions"][0]["prediction_id"]
    body = {"items": [{"prediction_id": given, "label": "negative"}]}
    assert (await served.client.post("/feedback", json=body)).status_code == 200
    text = (await served.client.get("/metrics")).text
    declared = set(re.findall(r"^# TYPE (laplora_\w+) ", text, flags=re.MULTILINE))
    assert len(named) > 15
    assert named <= declared


@needs_promtool
def test_the_rules_are_valid() -> None:
    assert PROMTOOL is not None
    found = subprocess.run([PROMTOOL, "check", "rules", str(RULES)], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
