"""Whether the figures of calibration in production are quiet on what an artifact was made for, and speak up elsewhere.

    python -m benchmarks.rules.feedback_drift [--artifact artifacts/sst2-smollm2] [--cache FOLDER]

The default artifact answers SST-2's 422 test rows, which neither training nor calibration has seen, the same rows
corrupted, and sentences of another data set (premises of RTE: news), of which no labels are known. The answers go
through the server's store. Then streams of test rows, drawn with replacement, on which nothing changes: how often
an alert fires at any of many looks.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from laplora.answers.prediction import Prediction
from laplora.fitting.corruptions import corrupt
from laplora.predictor import Predictor
from service.feedback.labels import FeedbackStore
from service.feedback.records import SeriesReport
from training.config import load_config
from training.data.section import load_splits
from training.data.sources import read_benchmark
from training.report.markdown import markdown_table

CONFIG = Path("training/configs/sst2-smollm2.yaml")
CORRUPTIONS = (("typos", 0.1), ("typos", 0.3), ("word_drop", 0.3), ("word_shuffle", 1.0), ("truncated_context", 0.5))
BATCH = 16
STREAMS, STREAM_ROWS, LOOK_EVERY = 40, 3000, 100
#: As in docker/monitoring/calibration-alerts.yaml.
FEWEST_ROWS, DRIFT_GAP, DRIFT_P_VALUE = 200, 0.1, 0.001
#: Heading of the table -> signal and what it is compared with.
SIGNALS = {
    "confidence: calibration": ("confidence", "calibration"),
    "epistemic: activation": ("epistemic", "activation"),
    "confidence: activation": ("confidence", "activation"),
}


def answers(predictor: Predictor, texts: Sequence[str]) -> list[Prediction]:
    """Return the recommended predictive's answers, in order."""
    rows = [predictor.encode({"text": text}, truncate=True) for text in texts]
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i].token_ids))
    predictions: dict[int, Prediction] = {}
    for start in range(0, len(rows), BATCH):
        places = by_length[start : start + BATCH]
        predictions.update(zip(places, predictor.predict([rows[i] for i in places]), strict=True))
    return [predictions[i] for i in range(len(rows))]


def watched(
    predictor: Predictor, parts: Sequence[Sequence[Prediction]], labels: Sequence[str] | None, window: int
) -> SeriesReport:
    """Return what the store reports of answers that come in this order, the last part labelled."""
    store = FeedbackStore(keep_s=1e9, rows=100_000, window=window)
    ids: list[str] = []
    for part in parts:
        ids = store.remember(predictor, predictor.recommended, "caller", part, 0.05)
    if labels is not None:
        store.give("caller", list(zip(ids, labels, strict=True)))
    (report,) = store.reports({predictor.artifact.digest})
    return report


def alerts(report: SeriesReport) -> set[str]:
    """Return which alerts of docker/monitoring/calibration-alerts.yaml fire on a report."""
    fired = {
        f"{drift.signal} drift ({drift.reference})"
        for drift in report.drift
        if drift.p_value < DRIFT_P_VALUE and drift.gap > DRIFT_GAP and report.recent >= FEWEST_ROWS
    }
    f = report.figures
    if f is None or report.labelled < FEWEST_ROWS:
        return fired
    pairs = {
        "nll": (f.nll.value, f.nll.limit),
        "ece": (f.ece.value, f.ece.limit),
        "coverage": (f.coverage.limit, f.coverage.value),
        "accepted risk": (f.accepted_risk.value, f.accepted_risk.limit),
        "worse than map": (f.map_gain.limit, f.map_gain.value),
    }
    return fired | {name for name, (high, low) in pairs.items() if high is not None and low is not None and high > low}


def cells(name: str, report: SeriesReport) -> list[str]:
    """Return one row of the table."""
    f = report.figures
    gaps = {(d.signal, d.reference): f"{d.gap:.3f} ({d.p_value:.1e})" for d in report.drift}
    row = [name, str(report.recent), *(gaps.get(signal, "-") for signal in SIGNALS.values())]
    if f is None:
        row += ["-"] * 5
    else:
        figures = (f.nll, f.ece, f.coverage, f.accepted_risk)
        row += [f"{f.accuracy.value:.3f}", *(f"{one.value:.3f} ({one.limit:.3f})" for one in figures)]
    return [*row, ", ".join(sorted(alerts(report))) or "none"]


def streams(predictor: Predictor, pool: Sequence[Prediction], labels: Sequence[str]) -> Counter[str]:
    """Return in how many streams, in which nothing changes, each alert fires at any look."""
    fired: Counter[str] = Counter()
    for seed in range(STREAMS):
        draw = random.Random(seed)
        store = FeedbackStore(keep_s=1e9, rows=100_000, window=1000)
        seen: set[str] = set()
        for _ in range(0, STREAM_ROWS, LOOK_EVERY):
            places = [draw.randrange(len(pool)) for _ in range(LOOK_EVERY)]
            ids = store.remember(predictor, predictor.recommended, "caller", [pool[i] for i in places], 0.05)
            store.give("caller", [(one, labels[i]) for one, i in zip(ids, places, strict=True)])
            (report,) = store.reports({predictor.artifact.digest})
            seen |= alerts(report)
        fired.update(seen)
    return fired


def main() -> None:
    """Print the table and the streams' alarms."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rules.feedback_drift", description=__doc__)
    parser.add_argument("--artifact", type=Path, default=Path("artifacts/sst2-smollm2"), help="folder of the artifact")
    parser.add_argument("--cache", type=Path, default=None, help="folder of base models and data")
    options = parser.parse_args()
    config = load_config(CONFIG)
    splits = load_splits(config.data, seed=config.seed, cache=options.cache)
    predictor = Predictor.load(options.artifact, cache_dir=options.cache, verify_golden=False)

    labels = [splits.task.labels[example.label] for example in splits.test]
    rte = read_benchmark("rte", (), "wheel", cache=options.cache)
    rows = []

    def add(name: str, *parts: Sequence[Prediction], labels: Sequence[str] | None, window: int = 1000) -> None:
        rows.append(cells(name, watched(predictor, parts, labels, window)))

    def answers_to(examples: Sequence[Any], field: str = "text") -> list[Prediction]:
        return answers(predictor, [str(example.fields[field]) for example in examples])

    test = answers_to(splits.test)
    half = len(test) // 2
    add("SST-2 test", test, labels=labels)
    add("first half, then second", test[:half], test[half:], labels=labels[half:], window=half)
    for kind, severity in CORRUPTIONS:
        shifted = answers_to([corrupt(example, kind, severity, config.seed) for example in splits.test])
        name = f"{kind} {severity:g}"
        add(name, shifted, labels=labels)
        add(f"first half, then {name}", test[:half], shifted[half:], labels=labels[half:], window=half)
    news = answers_to([example for pool in rte.pools for example in pool.examples][:400], "premise")
    add("RTE premises", news, labels=None)
    add("first half, then RTE", test[:half], news[:half], labels=None, window=half)
    heading = ["answers", "rows", *SIGNALS, "accuracy", "NLL", "ECE", "coverage", "accepted risk", "alerts"]
    print(markdown_table(heading, rows, left=(0, len(heading) - 1)))
    print(f"{STREAMS} streams of {STREAM_ROWS} rows, a look every {LOOK_EVERY}; streams in which an alert fired:")
    print(dict(streams(predictor, test, labels)) or "none")


if __name__ == "__main__":
    main()
