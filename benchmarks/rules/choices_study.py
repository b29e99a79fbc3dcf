"""What each rule of recommendation would have served in the study, from its stored losses: no model needed.

    python -m benchmarks.rules.choices_study [--runs runs/study] [--seeds 0 1 2]

Every task and seed chooses on its calibration rows and is judged on its test rows, pooled over a task's seeds as in
the study's tables. A rule picked here is picked on these test rows: compare rules, do not report the best one's gain.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

import laplora.decisions.recommendation as rule
from benchmarks.study.compute.choose import CANDIDATES
from benchmarks.study.results.scores import outcome, pooled_mean
from laplora.metrics.scores import row_nll

#: (guard, cheaper, laplace) in standard errors: below MAP by how much, and what counts as close to the best.
RULES = [(g, c, p) for g in (-1.0, -0.5, 0.0, 0.5, 1.96) for c, p in ((0.0, 0.0), (1.0, 0.25), (1.0, 1.0), (0.0, 1.0))]


@dataclass(frozen=True)
class Cell:
    """One task and seed: by predictive (rows,) losses on the calibration and the test rows."""

    task: str
    calibration: dict[str, torch.Tensor]
    test: dict[str, torch.Tensor]


def read_cells(folder: Path, seeds: list[str] | None = None) -> list[Cell]:
    """Return every finished task and seed below TASK/SEED; of these seeds only, where given."""
    cells = []
    for path in sorted(folder.glob("*/*/result.json")):
        if seeds and path.parent.name not in seeds:
            continue
        losses, found = (
            load_file(path.parent / "losses.safetensors"),
            load_file(path.parent / "predictions.safetensors"),
        )
        test = {name: row_nll(found[f"probs.{name}"], found["labels"]) for name in CANDIDATES}
        cells.append(Cell(path.parent.parent.name, {name: losses[name] for name in CANDIDATES}, test))
    return cells


def judge(cells: list[Cell], numbers: tuple[float, float, float]) -> str:
    """Return what one rule serves and how it does, as a line."""
    rule._NESTED_GUARD, rule._CHEAPER, rule._LAPLACE = -numbers[0], numbers[1], numbers[2]
    tasks: dict[str, list[tuple[str, dict[str, torch.Tensor]]]] = {}
    for cell in cells:
        tasks.setdefault(cell.task, []).append((rule._choose(cell.calibration)[0], cell.test))
    served = [name for own in tasks.values() for name, _ in own]
    counts = ", ".join(f"{served.count(name):2d}" for name in CANDIDATES)
    line = f"{numbers[0]:5.2f} {numbers[1]:5.2f} {numbers[2]:5.2f}   {counts}"
    for against in ("map", "temperature"):
        found = [pooled_mean(torch.stack([test[name] - test[against] for name, test in own])) for own in tasks.values()]
        mean = sum(value for value, _, _ in found) / len(found)
        ends = [outcome(low, high) for _, low, high in found]
        won, tied, lost = (ends.count(end) for end in ("win", "tie", "loss"))
        line += f"   {mean:+.4f} {won:2d} {tied:2d} {lost:2d}"
    return line


def main() -> None:
    """Print one line per rule."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rules.choices_study", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the study's results")
    parser.add_argument("--seeds", nargs="+", help="these seeds only, as for a check on seeds that chose nothing")
    args = parser.parse_args()
    cells = read_cells(args.runs, args.seeds)
    if not cells:
        raise SystemExit("no finished task: run python -m benchmarks.study first")
    print(f"{len(cells)} tasks and seeds. Rule in standard errors; how often it serves {', '.join(CANDIDATES)};")
    print("then against map and against temperature: mean NLL difference over tasks, tasks won, tied, lost.")
    for numbers in RULES:
        print(judge(cells, numbers))


if __name__ == "__main__":
    main()
