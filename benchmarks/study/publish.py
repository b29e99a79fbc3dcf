"""Publish: from the study's stored predictions to study.json, the tables in docs/results.md and the plots."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.pages.approximation_plot import write_approximation_plot
from benchmarks.study.pages.plots import write_plots
from benchmarks.study.pages.tables import TABLES, page_tables
from benchmarks.study.results.predictions import Predictions, digest, read_predictions, without_folders
from benchmarks.study.results.records import COLUMNS, FILE, REFERENCES, Records, read_records, tables_of, write_records
from benchmarks.study.results.scores import pooled_mean
from benchmarks.study.results.seed_ensembles import seed_ensembles
from laplora.errors import DataError
from laplora.linearised import entropy
from laplora.metrics.ranking import error_auroc
from laplora.metrics.scores import Evaluation, evaluate_probs
from training.report.markdown import fill
from training.workspace.terminal import say


def publish(study: Path, docs: Path) -> list[Path]:
    """Score every finished TASK/SEED below a study's folder, publish them in place of the old ones; return the files.

    Raises:
        DataError: nothing finished, predictions that cannot be used, seeds of a task that do not share their
            configuration and test rows, a damaged published file, or a page without the tables' markers.
    """
    folder = docs / "results"
    variants = read_records(folder)["variants"] if (folder / FILE).is_file() else []
    return _write(lambda: score_study(study) | {"variants": variants}, docs)


def publish_variants(variants: Sequence[dict[str, Any]], docs: Path) -> list[Path]:
    """Add the variants that ``compare`` returned of one task and seed, in place of old ones; return the files.

    Raises:
        DataError: something else, no or a damaged published file, or a page without the tables' markers.
    """
    records = read_records(docs / "results")
    places = {(r["task"], r["seed"]) for r in variants}
    others = [r for r in records["variants"] if (r["task"], r["seed"]) not in places]
    records["variants"] = sorted([*others, *variants], key=lambda r: (r["task"], r["seed"]))
    return _write(lambda: records, docs)


def _write(make: Callable[[], Records], docs: Path) -> list[Path]:
    """Write records, pictures and page; a page without its markers is refused before the records are made."""
    folder, page = docs / "results", docs / "results.md"
    text = page.read_text(encoding="utf-8")
    fill(text, "study", dict.fromkeys(TABLES, ""))
    files = [write_records(make(), folder)]
    tables = tables_of(read_records(folder))
    files += write_plots(tables, folder) + write_approximation_plot(tables["variants"], folder)
    page.write_text(fill(text, "study", page_tables(tables)), encoding="utf-8")
    return [*files, page]


def score_study(folder: Path) -> Records:
    """Return the records of every finished task and seed below a study's folder, TASK/SEED; raises as ``publish``."""
    by_task: dict[str, list[Predictions]] = {}
    for path in sorted(folder.glob("*/*/result.json")):
        if (path.parent / "predictions.safetensors").is_file():
            predictions = read_predictions(path.parent)
            by_task.setdefault(predictions.result.task, []).append(predictions)
    if not by_task:
        raise DataError(
            f"no finished task below {folder}: expected TASK/SEED/result.json and predictions.safetensors; "
            "run python -m benchmarks.study first"
        )
    records: Records = {name: [] for name in COLUMNS}
    methods: dict[str, dict[str, Any]] = {}
    for task, seeds in sorted(by_task.items()):
        say(f"scoring {task}: {len(seeds)} seed(s)")
        for name, rows in score_task(sorted(seeds, key=lambda p: p.result.seed)).items():
            records[name] += rows
        for m, method in ((m, p.result.methods[m]) for p in seeds for m in p.probs):
            methods[m] = {"method": m, "title": method.shared_title, "family": method.family}
    places = {reference: i for i, reference in enumerate(REFERENCES)}
    records["methods"] = sorted(methods.values(), key=lambda m: (places.get(m["method"], 9), m["family"], m["method"]))
    return records


def score_task(seeds: Sequence[Predictions]) -> Records:
    """Return the records of one task from all its seeds, ascending.

    Raises:
        DataError: two of one seed, or seeds of different configurations or test rows.
    """
    first = seeds[0].result
    digests = {p.result.seed: digest(p) for p in seeds}
    if len(digests) < len(seeds):
        raise DataError(f"{first.task}: more than one folder holds the same seed: keep one of each")
    if len(set(digests.values())) > 1:
        raise DataError(
            f"{first.task}: seeds {sorted(digests)} differ in sizes, steps, configuration or test rows, so they cannot "
            "be pooled: run the outdated ones again"
        )
    scored = {
        (p.result.seed, m): evaluate_probs(probs, p.labels, p.scores.get(m), resamples=0)
        for p in seeds
        for m, probs in p.probs.items()
    }
    return {
        "tasks": [_task(seeds, digests)],
        "scores": [_score(p, m, scored[p.result.seed, m]) for p in seeds for m in p.probs],
        "comparisons": list(_comparisons(seeds)),
        "seeds": [_seed(p, scored) for p in seeds],
        "ensembles": sorted(seed_ensembles(seeds), key=lambda e: str(e["method"])),
    }


def _task(seeds: Sequence[Predictions], digests: Mapping[int, str]) -> dict[str, Any]:
    first = seeds[0].result
    confidence = [p.probs["map"].amax(1) - (~p.mistakes("map")).double() for p in seeds]
    against = {
        f"against_{reference}": pooled_mean(
            torch.stack([p.losses(p.result.recommended) - p.losses(reference) for p in seeds])
        )
        for reference in REFERENCES
    }
    return {
        "task": first.task,
        "digest": digests[first.seed],
        "classes": len(first.classes),
        **{name: getattr(first, name) for name in ("train_rows", "calibration_rows", "rows", "steps")},
        "configuration": without_folders(first.configuration),
        "capped": {k: v for p in seeds for k, v in p.result.capped.items()},
        "seeds": list(digests),
        "hardware": _distinct(p.result.hardware for p in seeds),
        "versions": _distinct(p.result.versions for p in seeds),
        "gap": pooled_mean(torch.stack(confidence)),
        **against,
    }


def _comparisons(seeds: Sequence[Predictions]) -> Iterable[dict[str, Any]]:
    """Yield every method against every reference, over the seeds that have both."""
    for method in sorted({m for p in seeds for m in p.probs}):
        for against in REFERENCES:
            both = [p for p in seeds if method in p.probs and against in p.probs]
            if both and method != against:
                value, low, high = pooled_mean(torch.stack([p.losses(method) - p.losses(against) for p in both]))
                yield {
                    "task": seeds[0].result.task,
                    "method": method,
                    "against": against,
                    "difference": value,
                    "low": low,
                    "high": high,
                    "seeds": len(both),
                }


def _score(predictions: Predictions, method: str, scored: Evaluation) -> dict[str, Any]:
    result = predictions.result
    entry = result.methods[method]
    return {
        "task": result.task,
        "seed": result.seed,
        "method": method,
        **{name: getattr(scored, name) for name in ("nll", "ece", "accuracy", "brier", "auroc_error")},
        "recommended": method == result.recommended,
        "seconds": entry.seconds,
        "size_bytes": entry.bytes,
        "option_orders": entry.option_orders,
    }


def _seed(predictions: Predictions, scored: Mapping[tuple[int, str], Evaluation]) -> dict[str, Any]:
    result = predictions.result
    served = scored[result.seed, result.recommended]
    return {
        "task": result.task,
        "seed": result.seed,
        "recommended": result.recommended,
        "reason": result.recommendation_reason,
        "review_score": result.review_score,
        "review_auroc": served.auroc_error,
        "map_entropy_auroc": error_auroc(entropy(predictions.probs["map"]), predictions.mistakes(result.recommended)),
        "conformal": result.conformal,
        "rankings": result.rankings,
        "map_bins": _bins(scored[result.seed, "map"]),
        "recommended_bins": _bins(served),
    }


def _bins(scored: Evaluation) -> list[tuple[int, int, float | None, float | None]]:
    """Return the reliability bins that hold rows: number, rows, mean confidence, accuracy."""
    return [(i, b.count, b.confidence, b.accuracy) for i, b in enumerate(scored.reliability) if b.count]


def _distinct(values: Iterable[Any]) -> list[Any]:
    """Return JSON values without repetition, in order of their text."""
    by_text = {json.dumps(v, sort_keys=True): v for v in values}
    return [by_text[text] for text in sorted(by_text)]
