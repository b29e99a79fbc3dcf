"""How much of a prediction set's coverage is the draw of its calibration rows, from the study's stored predictions.

    python -m benchmarks.rules.coverage_study [--runs runs/study]

The study's seeds share one draw of calibration rows per task, so its coverage is one number. Here the test rows are
dealt into calibration and test rows again and again, at the study's number of calibration rows and at half of them,
under the recommended predictive as it is: what conformal sets promise is the mean over deals.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from safetensors.torch import load_file

from laplora.decisions.conformal import conformal_threshold

NOMINAL = 0.9
DEALS = 1000


def label_probs(cell: Path, method: str) -> torch.Tensor:
    """Return the probability of each test row's label, (rows,)."""
    tensors = load_file(cell / "predictions.safetensors")
    return tensors[f"probs.{method}"].double().gather(1, tensors["labels"][:, None])[:, 0]


def coverage(probs: torch.Tensor, calibration_rows: int) -> float:
    """Return the share of the later rows whose label is in the set that the first rows fit.

    Whether a label is in its row's LAC set depends on that label's probability alone.
    """
    first = torch.stack([probs[:calibration_rows], 1 - probs[:calibration_rows]], 1)
    threshold = conformal_threshold(first, torch.zeros(calibration_rows, dtype=torch.int64), NOMINAL)
    return float((1 - probs[calibration_rows:] <= threshold).double().mean())


def main() -> None:
    """Print one line per task: coverage as in the study, then over deals of its test rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rules.coverage_study", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the study's results")
    tasks: dict[str, list[tuple[Path, dict[str, Any]]]] = {}
    for path in sorted(parser.parse_args().runs.glob("*/*/result.json")):
        tasks.setdefault(path.parent.parent.name, []).append((path.parent, json.loads(path.read_text())))
    if not tasks:
        raise SystemExit("no finished task: run python -m benchmarks.study first")
    print(f"LAC coverage of the recommended predictive, nominal {NOMINAL}, mean over seeds; then {DEALS} deals:")
    print("task, as drawn; at the study's calibration rows: mean, within 2 points; at half of the rows: the same")
    generator = torch.Generator().manual_seed(0)
    for task, cells in tasks.items():
        seeds = [label_probs(cell, result["recommended"]) for cell, result in cells]
        few, rows = cells[0][1]["calibration_rows"], len(seeds[0])
        drawn = fmean([result["conformal"][result["recommended"]]["lac"]["coverage"] for _, result in cells])
        line = f"{task:14} {drawn:.3f}"
        deals = [torch.randperm(rows, generator=generator) for _ in range(DEALS)]
        for calibration_rows in (few, rows // 2):
            dealt = [fmean([coverage(probs[deal], calibration_rows) for probs in seeds]) for deal in deals]
            within = fmean([float(abs(c - NOMINAL) <= 0.02) for c in dealt])
            line += f"   {calibration_rows:4d}: {fmean(dealt):.3f}, {within:.0%}"
        print(line)


if __name__ == "__main__":
    main()
