"""Publish: from the study's stored predictions to the JSON files, the tables in docs/results.md and the plots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from benchmarks.study.pages.plots import write_plots
from benchmarks.study.pages.tables import insert_tables, page_tables
from benchmarks.study.results.predictions import Predictions, SeedResult, digest, read_predictions, without_folders
from benchmarks.study.results.records import (
    REFERENCES,
    Bin,
    Bounds,
    Comparison,
    Details,
    MethodDetail,
    MethodSetup,
    Published,
    Reference,
    Score,
    SeedDetail,
    Setup,
    TaskDetail,
    TaskSetup,
    distinct,
    merge,
    read_published,
    seeds_of,
    write_published,
)
from benchmarks.study.results.scores import Interval, MethodScores, draw_counts, pooled_means, row_gap, score_method
from benchmarks.study.results.seed_ensembles import seed_ensembles
from laplora.errors import DataError
from laplora.linearised import entropy
from laplora.metrics.ranking import error_auroc
from laplora.metrics.scores import ReliabilityBin, row_nll
from training.workspace.terminal import say


def publish(runs: Path, docs: Path, name: str = "study") -> list[Path]:
    """Score every finished task and seed below ``runs/name``, add them to what is published, and return the files.

    Written: the JSON files and plots in ``docs/results``, the study's tables in ``docs/results.md``. Tables and plots
    are made from the JSON files alone, those of earlier calls included.

    Raises:
        DataError: nothing finished, predictions that cannot be used, seeds of a task that do not share their
            configuration and test rows, a damaged published file, or a page without the tables' markers.
    """
    folder, page = docs / "results", docs / "results.md"
    text = page.read_text(encoding="utf-8")
    old = read_published(folder)
    insert_tables(text, page_tables(folder))  # a page without its markers is refused before anything is computed
    new = score_study(runs / name)
    _say_split_seeds(old, new, runs / name)
    files = write_published(merge(old, new), folder)
    published = read_published(folder)
    files += write_plots(published, folder)
    page.write_text(insert_tables(text, page_tables(folder)), encoding="utf-8")
    return [*files, page]


def score_study(folder: Path) -> Published:
    """Return the records of every finished task and seed below a study's folder, TASK/SEED.

    Raises:
        DataError: as in ``publish``.
    """
    by_task: dict[str, list[Predictions]] = {}
    for path in sorted(folder.glob("*/*/result.json"), key=lambda p: (p.parent.parent.name, p.parent.name)):
        if (path.parent / "predictions.safetensors").is_file():
            found = read_predictions(path.parent)
            by_task.setdefault(found.result.task, []).append(found)
    if not by_task:
        raise DataError(
            f"no finished task below {folder}: expected TASK/SEED/result.json and predictions.safetensors; "
            "run python -m benchmarks.study first"
        )
    result = Published()
    for task, seeds in by_task.items():
        say(f"scoring {task}: {len(seeds)} seed(s)")
        result = merge(result, score_task(sorted(seeds, key=lambda p: p.result.seed)))
    return result


def score_task(seeds: Sequence[Predictions]) -> Published:
    """Return the records of one task from all its seeds here, ascending.

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
    counts = draw_counts(first.rows)
    scored = {
        (p.result.seed, method): score_method(probs, p.labels, p.scores.get(method), counts=counts)
        for p in seeds
        for method, probs in p.probs.items()
    }
    setup = TaskSetup(
        digest=digests[first.seed],
        classes=first.classes,
        train_rows=first.train_rows,
        calibration_rows=first.calibration_rows,
        rows=first.rows,
        steps=first.steps,
        configuration=without_folders(first.configuration),
        capped={k: v for p in seeds for k, v in p.result.capped.items()},
        seeds=tuple(digests),
        hardware=distinct(p.result.hardware for p in seeds),
        versions=distinct(p.result.versions for p in seeds),
    )
    methods = {m: p.result.methods[m] for p in seeds for m in p.probs}
    return Published(
        scores=tuple(_score(p.result, m, scored[p.result.seed, m]) for p in seeds for m in p.probs),
        comparisons=tuple(_comparisons(seeds, counts)),
        setup=Setup(
            tasks={first.task: setup},
            methods={m: MethodSetup(title=found.shared_title, family=found.family) for m, found in methods.items()},
        ),
        details=Details(
            tasks=(_task_detail(seeds, counts),),
            ensembles=tuple(seed_ensembles(seeds, counts)),
            seeds=tuple(_seed_detail(p, scored) for p in seeds),
            methods=tuple(_method_detail(p.result, m, scored[p.result.seed, m]) for p in seeds for m in p.probs),
        ),
    )


def _comparisons(seeds: Sequence[Predictions], counts: torch.Tensor) -> Iterable[Comparison]:
    """Yield every method against every reference, over the seeds that have both."""
    losses = {(p.result.seed, m): row_nll(probs, p.labels) for p in seeds for m, probs in p.probs.items()}
    shared: dict[tuple[str, Reference], list[int]] = {}
    for method in sorted({m for _, m in losses}):
        for against in REFERENCES:
            both = [p.result.seed for p in seeds if method in p.probs and against in p.probs]
            if both and method != against:
                shared[method, against] = both
    intervals = pooled_means(
        {
            f"{method} {against}": torch.stack([losses[s, method] - losses[s, against] for s in both])
            for (method, against), both in shared.items()
        },
        counts,
    )
    for (method, against), both in shared.items():
        found = intervals[f"{method} {against}"]
        yield Comparison(
            task=seeds[0].result.task,
            method=method,
            against=against,
            difference=found.value,
            low=found.low,
            high=found.high,
            seeds=len(both),
            rows=counts.shape[1],
        )


def _task_detail(seeds: Sequence[Predictions], counts: torch.Tensor) -> TaskDetail:
    served = [row_nll(p.probs[p.result.recommended], p.labels) for p in seeds]
    # a reference that some seeds lack would make the two comparisons about different models: all seeds or none
    references = {name: [p.probs[name] for p in seeds if name in p.probs] for name in REFERENCES}
    quantities: dict[str, torch.Tensor] = {
        name: torch.stack([s - row_nll(r, p.labels) for s, r, p in zip(served, found, seeds, strict=True)])
        for name, found in references.items()
        if len(found) == len(seeds)
    }
    quantities["gap"] = torch.stack([row_gap(p.probs["map"], p.labels) for p in seeds])
    found = {name: _bounds(interval) for name, interval in pooled_means(quantities, counts).items()}
    return TaskDetail(
        task=seeds[0].result.task,
        seeds=len(seeds),
        gap=found["gap"],
        against={name: found[name] for name in REFERENCES if name in found},
    )


def _score(result: SeedResult, method: str, scores: MethodScores) -> Score:
    return Score(
        task=result.task,
        seed=result.seed,
        method=method,
        rows=scores.rows,
        recommended=method == result.recommended,
        **{name: scores.values[name] for name in ("nll", "ece", "accuracy", "brier", "auroc_error")},
    )


def _method_detail(result: SeedResult, method: str, scores: MethodScores) -> MethodDetail:
    entry, area = result.methods[method], scores.values["aurc"]
    assert area is not None  # only rankings by pairs can lack a value
    return MethodDetail(
        task=result.task,
        seed=result.seed,
        method=method,
        confidence=scores.confidence,
        auprc_error=scores.values["auprc_error"],
        aurc=area,
        intervals=scores.intervals,
        calibration_nll=entry.calibration_nll,
        seconds=entry.seconds,
        size_bytes=entry.bytes,
        option_orders=entry.option_orders,
    )


def _seed_detail(predictions: Predictions, scored: dict[tuple[int, str], MethodScores]) -> SeedDetail:
    result, probs = predictions.result, predictions.probs
    served = scored[result.seed, result.recommended]
    mistakes = probs[result.recommended].argmax(1) != predictions.labels
    return SeedDetail(
        task=result.task,
        seed=result.seed,
        recommended=result.recommended,
        reason=result.recommendation_reason,
        review_score=result.review_score,
        review_auroc=served.values["auroc_error"],
        map_entropy_auroc=error_auroc(entropy(probs["map"]), mistakes),
        conformal=result.conformal,
        rankings=result.rankings,
        hardware=result.hardware,
        versions=result.versions,
        map_bins=_bins(scored[result.seed, "map"].reliability),
        recommended_bins=_bins(served.reliability),
    )


def _bins(reliability: Sequence[ReliabilityBin]) -> tuple[Bin, ...]:
    return tuple(
        (i, b.count, b.confidence, b.accuracy)
        for i, b in enumerate(reliability)
        if b.confidence is not None and b.accuracy is not None
    )


def _bounds(interval: Interval) -> Bounds:
    return interval.value, interval.low, interval.high


def _say_split_seeds(old: Published, new: Published, folder: Path) -> None:
    """Say where published seeds lie elsewhere: what is pooled over seeds needs all predictions in one place."""
    for task, setup in new.setup.tasks.items():
        before = old.setup.tasks.get(task)
        elsewhere = sorted(set(seeds_of(old, task)) - set(setup.seeds))
        if before and before.digest == setup.digest and elsewhere:
            say(
                f"{task}: predictions of the published seeds {elsewhere} are not below {folder}: paired comparisons "
                f"cover {max(len(before.seeds), len(setup.seeds))} seeds at most; copy those folders here to pool all"
            )
