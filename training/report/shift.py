"""The record of a shift evaluation, and where it is written: the run's report and, published, the documentation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from laplora.artifact.folder import Artifact
from laplora.decisions.uncertainty import FLAGS
from laplora.errors import ConfigError
from laplora.files import write_json
from laplora.fitting.describing import installed_versions
from laplora.linearised import entropy
from laplora.metrics.detection import detection
from laplora.metrics.scores import evaluate_probs
from training.config import RunConfig
from training.report.markdown import fill
from training.report.rounding import rounded
from training.report.shift_answers import PredictiveRows, SetAnswers
from training.report.shift_tables import page_section, shift_figure, shift_tables

_METRICS = ("accuracy", "nll", "ece", "brier", "auroc_error")


def set_record(answers: SetAnswers, inside: SetAnswers | None) -> dict[str, Any]:
    """Return one set's metrics as JSON values, floats of six digits: more would be other ones on every processor.

    ``inside`` are the answers to the run's test rows, to tell the set's rows from; None for those rows.
    """
    detectors = {}
    if inside is not None:
        detectors["label_mass"] = _detected(-inside.label_mass, -answers.label_mass)
        if inside.familiarity is not None and answers.familiarity is not None:
            detectors["familiarity"] = _detected(-inside.familiarity, -answers.familiarity)
    predictives = {}
    for name, rows in answers.predictives.items():
        of_rows = {} if inside is None else _detectors(inside.predictives[name], rows)
        if name == "map" and of_rows:
            detectors["map_entropy"] = of_rows["total_entropy"]
        predictives[name] = _predictive_record(rows, answers.labels) | {"detection": of_rows}
    record = {
        "rows": len(answers.labels),
        "truncated": int(answers.truncated.sum()),
        "label_mass": _mean(answers.label_mass),
        "detection": detectors,
        "fast": _deferral(answers),
        "predictives": predictives,
    }
    return {key: rounded(value) for key, value in record.items()}


def _predictive_record(rows: PredictiveRows, labels: torch.Tensor) -> dict[str, Any]:
    """Return one predictive's metrics; None where the rows have no label."""
    labelled = bool((labels >= 0).all())
    evaluation = evaluate_probs(rows.probs, labels, rows.score) if labelled else None
    intervals = evaluation.intervals if evaluation else {}
    accepted = ~rows.review
    errors = rows.probs.argmax(1) != labels
    return {
        **{metric: getattr(evaluation, metric, None) for metric in _METRICS},
        "intervals": {metric: list(pair) for metric, pair in intervals.items() if metric in _METRICS},
        "total_entropy": _mean(entropy(rows.probs)),
        "epistemic": None if rows.epistemic is None else _mean(rows.epistemic),
        "flags": {flag: _mean(rows.flags[:, i]) for i, flag in enumerate(FLAGS)},
        "review": _mean(rows.review),
        "accepted": int(accepted.sum()),
        "accepted_errors": int(errors[accepted].sum()) if labelled else None,
    }


def _deferral(answers: SetAnswers) -> dict[str, Any] | None:
    """Return which share mode ``fast`` defers, and of how many rows its decision is ``laplace``'s."""
    if answers.deferral is None:
        return None
    deferred, unfamiliar = answers.deferral.double().mean(0).tolist()
    exact = answers.predictives["laplace"].review
    return {
        "handed_over": deferred,
        "unfamiliar": unfamiliar,
        # fast alone, and with the exact answers in the place of those that it defers
        "same_decision": {n: _mean(answers.predictives[n].review == exact) for n in ("fast", "fast_served")},
    }


def _detectors(inside: PredictiveRows, outside: PredictiveRows) -> dict[str, dict[str, float]]:
    detectors = {
        "total_entropy": _detected(entropy(inside.probs), entropy(outside.probs)),
        "confidence": _detected(1 - inside.probs.amax(1), 1 - outside.probs.amax(1)),
    }
    if inside.epistemic is not None and outside.epistemic is not None:
        detectors["epistemic"] = _detected(inside.epistemic, outside.epistemic)
    return detectors


def _detected(inside: torch.Tensor, outside: torch.Tensor) -> dict[str, float]:
    return {k: v for k, v in asdict(detection(inside, outside)).items() if isinstance(v, float)}


def _mean(values: torch.Tensor) -> float:
    return float(values.double().mean())


def shift_record(config: RunConfig, artifact: Artifact, sets: Mapping[str, Any]) -> dict[str, Any]:
    """Return the whole report as JSON values, the sets in order, the run's test rows first."""
    manifest = artifact.manifest
    return {
        "name": config.name,
        "artifact": artifact.digest,
        "base_model": manifest.base_model,
        "quantization": manifest.quantization,
        "seed": config.seed,
        "recommended": manifest.recommended.predictive,
        "calibration_rows": manifest.calibration.rows,
        "versions": installed_versions(),
        "sets": dict(sets),
    }


def write_shift_report(record: Mapping[str, Any], folder: Path) -> None:
    """Write shift.json, shift.md and shift.png into a folder."""
    write_json(folder / "shift.json", record)
    text = f"# {record['name']}: distribution shift\n\n{shift_tables(record)}"
    (folder / "shift.md").write_text(text, encoding="utf-8")
    shift_figure(record).savefig(folder / "shift.png", dpi=100)


def publish_shift(config: RunConfig, docs: Path = Path("docs")) -> None:
    """Write a measured report to ``docs/results`` and every one there to ``docs/shift.md``; ConfigError: none yet."""
    source, page, results = config.run_dir / "report" / "shift.json", docs / "shift.md", docs / "results"
    if not source.is_file():
        raise ConfigError(f"no shift evaluation at {source}: run 'python -m training shift' without --publish first")
    record = json.loads(source.read_text(encoding="utf-8"))
    records = {r["name"]: r for r in published_shifts(results)} | {record["name"]: record}
    section = page_section([records[name] for name in sorted(records)])
    text = fill(page.read_text(encoding="utf-8"), "shift", section)
    write_json(results / f"shift_{record['name']}.json", record)
    shift_figure(record).savefig(results / f"shift_{record['name']}.png", dpi=100)
    page.write_text(text, encoding="utf-8")


def published_shifts(results: Path) -> list[dict[str, Any]]:
    """Return the reports in a folder, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("shift_*.json"))]
