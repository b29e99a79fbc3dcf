"""What each rule of recommendation would have served in the study, from its stored losses: no model needed.

    python -m benchmarks.rules.choices_study [--runs runs/study] [--seeds 0 1 2]

Every task and seed chooses on its calibration rows and is judged on its test rows, pooled over a task's seeds as in
the study's tables. A rule picked here is picked on these test rows: compare rules, do not report the best one's gain.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.rules.choices import rule_of
from benchmarks.study.compute.choose import CANDIDATES
from benchmarks.study.results.scores import outcome, pooled_mean
from laplora.decisions.recommendation import choose
from laplora.metrics.scores import row_nll

#: (guard, cheaper, laplace) in standard errors: below MAP by how much, and what counts as close to the best.
RULES = [(g, c, p) for g in (-1.0, -0.5, 0.0, 0.5, 1.96) for c, p in ((0.0, 0.0), (1.0, 0.25), (1.0, 1.0), (0.0, 1.0))]

#: By predictive (rows,) losses of one task and seed, on its calibration and on its test rows.
Cell = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]


def read_tasks(folder: Path, seeds: list[str] | None = None) -> dict[str, list[Cell]]:
    """Return every finished seed below TASK/SEED by task; only these seeds where some are given."""
    tasks: dict[str, list[Cell]] = {}
    for path in sorted(folder.glob("*/*/result.json")):
        if seeds and path.parent.name not in seeds:
            continue
        losses, predicted = (load_file(path.parent / f"{name}.safetensors") for name in ("losses", "predictions"))
        test = {name: row_nll(predicted[f"probs.{name}"], predicted["labels"]) for name in CANDIDATES}
        tasks.setdefault(path.parent.parent.name, []).append(({name: losses[name] for name in CANDIDATES}, test))
    return tasks


def judge(tasks: dict[str, list[Cell]], numbers: tuple[float, float, float]) -> str:
    """Return what one rule serves and how it does, as a line."""
    rule = rule_of(numbers)
    chosen = {task: [(choose(losses, rule)[0], test) for losses, test in cells] for task, cells in tasks.items()}
    served = [name for cells in chosen.values() for name, _ in cells]
    counts = ", ".join(f"{served.count(name):2d}" for name in CANDIDATES)
    line = f"{numbers[0]:5.2f} {numbers[1]:5.2f} {numbers[2]:5.2f}   {counts}"
    for against in ("map", "temperature"):
        pooled = [
            pooled_mean(torch.stack([test[name] - test[against] for name, test in cells])) for cells in chosen.values()
        ]
        mean = sum(value for value, _, _ in pooled) / len(pooled)
        ends = [outcome(low, high) for _, low, high in pooled]
        won, tied, lost = (ends.count(end) for end in ("win", "tie", "loss"))
        line += f"   {mean:+.4f} {won:2d} {tied:2d} {lost:2d}"
    return line


def main() -> None:
    """Print one line per rule."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rules.choices_study", description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the study's results")
    parser.add_argument("--seeds", nargs="+", help="these seeds only, as for a check on seeds that chose nothing")
    args = parser.parse_args()
    tasks = read_tasks(args.runs, args.seeds)
    if not tasks:
        raise SystemExit("no finished task: run python -m benchmarks.study first")
    cells = sum(len(cells) for cells in tasks.values())
    print(f"{cells} tasks and seeds. Rule in standard errors; how often it serves {', '.join(CANDIDATES)};")
    print("then against map and against temperature: mean NLL difference over tasks, tasks won, tied, lost.")
    for numbers in RULES:
        print(judge(tasks, numbers))


if __name__ == "__main__":
    main()
