"""How near its target ``empirical`` comes, and how often ``upper_bound`` holds, over draws of calibration rows.

    python -m benchmarks.promises [--runs FOLDER]

It reads the answers that ``benchmarks.experts`` keeps in --runs, and writes results.json and the page.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.experts.__main__ import RUNS
from benchmarks.experts.cells import DEVELOPMENT, SEEDS, Cell
from benchmarks.promises.page import PAGE, RESULTS, render
from benchmarks.promises.populations import METHODS, ROWS, TARGETS, figures, population
from laplora.files.atomic import write_whole


def results_of(tasks: Sequence[str], runs: Path, draws: int) -> dict[str, Any]:
    """Return what results.json holds, of every method that the tasks have answers of."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {"draws": draws, "figures": [], "transfer": []}
    populations = {}
    for task, method in product(tasks, METHODS):
        made = [population(Cell(task, seed, runs), method) for seed in SEEDS]
        if some := [one for one in made if one is not None]:
            populations[task, method] = some
            means = torch.tensor([one.transfer for one in some]).mean(0).tolist()
            shares = zip(("labelled", "test", "coverage"), means, strict=True)
            results["transfer"].append({"task": task, "method": method} | {n: round(share, 4) for n, share in shares})
    for (target, rows), ((task, method), some) in product(product(TARGETS, ROWS), populations.items()):
        place: dict[str, Any] = {"task": task, "method": method, "rows": rows, "target": target}
        of_rules = figures(some, METHODS[method], rows, target, draws)
        results["figures"] += [place | {"rule": rule} | of for rule, of in of_rules.items()]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.promises", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, default=RUNS, help="what benchmarks.experts keeps")
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--task", choices=DEVELOPMENT, nargs="+", default=DEVELOPMENT, help="these tasks alone")
    options = parser.parse_args()
    results = results_of(options.task, options.runs, options.draws)
    lines = [
        f"{json.dumps(k)}:{json.dumps(v, separators=(',', ':'))}".replace("},{", "},\n{") for k, v in results.items()
    ]
    write_whole(RESULTS, "{" + ",\n".join(lines) + "}\n")
    write_whole(PAGE, render(results))


if __name__ == "__main__":
    main()
