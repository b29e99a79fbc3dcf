"""The Prometheus rules of calibration in production: each fires on what it is for, and is quiet within the noise."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml
from programs import needs
from server_process import ROOT

RULES = ROOT / "docker" / "monitoring" / "calibration-alerts.yaml"
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
#: Figures that are beyond every limit.
BAD = {f"laplora_feedback_{name}": value for name, value in (("nll", 9.0), ("ece", 0.9), ("coverage", 0.1))}
#: Figures of labelled predictions, and the alerts that they raise.
LABELLED: dict[str, tuple[dict[str, float], list[str]]] = {
    "within every limit": ({}, []),
    "nll": ({"laplora_feedback_nll": 0.46}, ["LaploraNllAboveReference"]),
    "ece": ({"laplora_feedback_ece": 0.08}, ["LaploraEceAboveNoise"]),
    "coverage": ({"laplora_feedback_coverage": 0.79}, ["LaploraCoverageBelowLevel"]),
    "accepted risk": ({"laplora_feedback_accepted_risk": 0.13}, ["LaploraAcceptedRiskAboveTarget"]),
    "worse than map": ({"laplora_feedback_map_gain": -0.06}, ["LaploraWorseThanMap"]),
    "too few accepted": ({"laplora_feedback_accepted_risk": 0.5, "laplora_feedback_accepted_rows": 99.0}, []),
    "too few rows": (BAD | {"laplora_feedback_rows": 199.0}, []),
}
Case = tuple[list[dict[str, str]], dict[str, dict[str, str]], str]


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


def cases() -> dict[str, Case]:
    """Return by name the series, the labels of the alerts that fire on them beside their severity, and when to look."""
    found: dict[str, Case] = {
        # Between two classes the score repeats the confidence.
        "both drift": (
            series(QUIET) + drift("score", "calibration", 0.3, 1e-6) + drift("confidence", "calibration", 0.3, 1e-6),
            {"LaploraConfidenceDrift": OWN | {"reference": "calibration"}},
            "20m",
        ),
        "no limits": (series({n: 9.0 for n in QUIET if not n.endswith("_limit")}), {}, "20m"),
    }
    for name, (changed, alerts) in LABELLED.items():
        found[name] = series(QUIET | changed), dict.fromkeys(alerts, OWN), "20m"
        found[f"{name}, not before it has lasted"] = series(QUIET | changed), {}, "10m"
    for signal in ("epistemic", "confidence", "score"):
        for gap, p_value, rows, fires in (
            (0.2, 0.0001, 200.0, True),
            (0.2, 0.01, 200.0, False),
            (0.05, 0.0001, 200.0, False),
            (0.2, 0.0001, 199.0, False),
        ):
            given = series(QUIET | {"laplora_feedback_recent_rows": rows}) + drift(signal, "activation", gap, p_value)
            # Another instance with enough rows says nothing of this one.
            given += series({"laplora_feedback_recent_rows": 1000.0}, instance="two")
            alerts = {f"Laplora{signal.capitalize()}Drift": OWN | {"reference": "activation"}} if fires else {}
            found[f"{signal}: gap {gap}, p {p_value}, {rows} rows"] = given, alerts, "20m"
    for flagged, answered, fires in ((3, 20, True), (1, 20, False), (1, 2, False)):
        inside = ",".join(f'{name}="{value}"' for name, value in OWN.items())
        given = [
            {"series": f'laplora_flags_total{{{inside},flag="unfamiliar"}}', "values": f"0+{flagged}x150"},
            {"series": f'laplora_flags_total{{{inside},flag="truncated"}}', "values": "0+50x150"},
            {"series": f'laplora_decisions_total{{{inside},decision="accept"}}', "values": f"0+{answered}x150"},
            {"series": f'laplora_decisions_total{{{inside},decision="review"}}', "values": f"0+{flagged}x150"},
        ]
        strange = {"LaploraUnfamiliarInputs": OWN} if fires else {}
        found[f"{flagged} of {flagged + answered} inputs a minute are unfamiliar"] = given, strange, "2h"
    for unknown, late in ((30, {"LaploraFeedbackUnknown": {"instance": "one"}}), (5, {})):
        given = [
            {"series": f'laplora_feedback_items_total{{status="{status}",instance="one"}}', "values": f"0+{n}x150"}
            for status, n in (("recorded", 10), ("unknown", unknown))
        ]
        found[f"{unknown} of {unknown + 10} labels come too late"] = given, late, "2h"
    return found


@needs("promtool")
def test_each_alert_fires_on_what_it_is_for_and_on_nothing_else(tmp_path: Path) -> None:
    # Their texts are not compared: promtool wants all or none, so they are left out of the rules under test.
    plain = [{key: value for key, value in rule.items() if key != "annotations"} for rule in rules()]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "own", "rules": plain}]}))
    tests = []
    for name, (given, alerts, at) in cases().items():
        wanted = []
        for rule in rules():
            firing = [{"exp_labels": alerts[rule["alert"]] | rule["labels"]}] if rule["alert"] in alerts else []
            wanted.append({"eval_time": at, "alertname": rule["alert"], "exp_alerts": firing})
        tests.append({"name": name, "interval": "1m", "input_series": given, "alert_rule_test": wanted})
    path = tmp_path / "test.yaml"
    path.write_text(yaml.safe_dump({"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}))
    for command in (["check", "rules", str(RULES)], ["test", "rules", str(path)]):
        found = subprocess.run(["promtool", *command], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout + found.stderr
