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
from laplora.linearised import entropy
from laplora.metrics.detection import detection
from laplora.metrics.scores import Evaluation, evaluate_probs
from training.config import RunConfig
from training.report.markdown import fill
from training.report.shift_answers import PredictiveRows, SetAnswers
from training.report.shift_tables import page_section, shift_figure, shift_tables
from training.workspace.files import write_json
from training.workspace.provenance import installed_versions

#: ``fast`` alone, and with the exact answers in the place of those that it defers to ``laplace``.
_FAST = ("fast", "fast_served")
_METRICS = ("accuracy", "nll", "ece", "brier", "auroc_error")


def set_record(answers: SetAnswers, inside: SetAnswers | None) -> dict[str, Any]:
    """Return one set's metrics as JSON values.

    Args:
        inside: the answers to the run's test rows, to tell the set's rows from; None for those rows.
    """
    labelled = bool((answers.labels >= 0).all())
    detectors = {} if inside is None else {"label_mass": _detected(-inside.label_mass, -answers.label_mass)}
    if inside is not None and inside.kernel_variance is not None and answers.kernel_variance is not None:
        detectors["kernel_variance"] = _detected(inside.kernel_variance, answers.kernel_variance)
    predictives = {}
    for name, rows in answers.predictives.items():
        evaluation = evaluate_probs(rows.probs, answers.labels, rows.score) if labelled else None
        errors, accepted = rows.probs.argmax(1) != answers.labels, ~rows.review
        of_rows = {} if inside is None else _detectors(inside.predictives[name], rows)
        if name == "map" and of_rows:
            detectors["map_entropy"] = of_rows["total_entropy"]
        predictives[name] = {
            **{metric: _rounded(getattr(evaluation, metric, None)) for metric in _METRICS},
            "intervals": _intervals(evaluation),
            "total_entropy": _rounded(float(entropy(rows.probs).mean())),
            "epistemic": None if rows.epistemic is None else _rounded(float(rows.epistemic.mean())),
            "flags": {flag: _rounded(float(rows.flags[:, i].double().mean())) for i, flag in enumerate(FLAGS)},
            "review": _rounded(float(rows.review.double().mean())),
            "accepted": int(accepted.sum()),
            "accepted_errors": int(errors[accepted].sum()) if labelled else None,
            "detection": of_rows,
        }
    return {
        "rows": len(answers.labels),
        "truncated": int(answers.truncated.sum()),
        "label_mass": _rounded(float(answers.label_mass.mean())),
        "detection": detectors,
        "fast": _deferral(answers),
        "predictives": predictives,
    }


def _deferral(answers: SetAnswers) -> dict[str, Any] | None:
    """Return which share mode ``fast`` defers, and of how many rows its decision is ``laplace``'s."""
    if answers.deferral is None:
        return None
    deferred, unfamiliar = answers.deferral.double().mean(0).tolist()
    exact = answers.predictives["laplace"].review
    same = {name: float((answers.predictives[name].review == exact).double().mean()) for name in _FAST}
    return {
        "handed_over": _rounded(deferred),
        "unfamiliar": _rounded(unfamiliar),
        "same_decision": {name: _rounded(share) for name, share in same.items()},
    }


def _intervals(evaluation: Evaluation | None) -> dict[str, list[float | None]]:
    pairs = evaluation.intervals.items() if evaluation else ()
    return {metric: [_rounded(v) for v in pair] for metric, pair in pairs if metric in _METRICS}


def _detectors(inside: PredictiveRows, outside: PredictiveRows) -> dict[str, dict[str, Any]]:
    detectors = {
        "total_entropy": _detected(entropy(inside.probs), entropy(outside.probs)),
        "confidence": _detected(1 - inside.probs.amax(1), 1 - outside.probs.amax(1)),
    }
    if inside.epistemic is not None and outside.epistemic is not None:
        detectors["epistemic"] = _detected(inside.epistemic, outside.epistemic)
    return detectors


def _detected(inside: torch.Tensor, outside: torch.Tensor) -> dict[str, Any]:
    return {k: _rounded(v) for k, v in asdict(detection(inside, outside)).items() if isinstance(v, float)}


def _rounded(value: float | None) -> float | None:
    """Return six digits: more would be other ones on every processor."""
    return None if value is None else round(value, 6)


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


def write_shift_report(record: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write shift.json, shift.md and shift.png into a folder and return their paths."""
    paths = [folder / name for name in ("shift.json", "shift.md", "shift.png")]
    write_json(paths[0], record)
    paths[1].write_text(f"# {record['name']}: distribution shift\n\n{shift_tables(record)}", encoding="utf-8")
    shift_figure(record).savefig(paths[2], dpi=100)
    return paths


def publish_shift(config: RunConfig, docs: Path = Path("docs")) -> list[Path]:
    """Write a measured report to ``docs/results`` and every one there to ``docs/shift.md``; return the files.

    Raises:
        ConfigError: nothing measured yet.
        DataError: a page without the markers.
    """
    source, page = config.run_dir / "report" / "shift.json", docs / "shift.md"
    if not source.is_file():
        raise ConfigError(f"no shift evaluation at {source}: run 'python -m training shift' without --publish first")
    record = json.loads(source.read_text(encoding="utf-8"))
    results = docs / "results"
    others = [r for r in published_shifts(results) if r["name"] != record["name"]]
    section = page_section(sorted([*others, record], key=lambda r: str(r["name"])))
    text = fill(page.read_text(encoding="utf-8"), "shift", section)
    files = [results / f"shift_{record['name']}.{kind}" for kind in ("json", "png")]
    write_json(files[0], record)
    shift_figure(record).savefig(files[1], dpi=100)
    page.write_text(text, encoding="utf-8")
    return [*files, page]


def published_shifts(results: Path) -> list[dict[str, Any]]:
    """Return the reports in a folder, by name."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(results.glob("shift_*.json"))]
