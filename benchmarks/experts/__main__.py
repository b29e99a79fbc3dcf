"""``python -m benchmarks.experts``: every expert alone and its rivals, on the development tasks; then the page.

    python -m benchmarks.experts --data FOLDER                    # everything that is missing
    python -m benchmarks.experts --data FOLDER --task trec --seed 0
    python -m benchmarks.experts --publish                        # runs nothing: figures and page of what there is

FOLDER holds the data sets as their authors publish them (``benchmarks.evidence.rows``). Adapters, the arrays of every
pass and each method's answers are kept in --runs, so a stopped call continues. Two calls can run side by side on other
tasks or seeds. Figures are made of answers whenever they are published, by the rules of the day.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.experts.cells import DEVELOPMENT, SEEDS, Cell
from benchmarks.experts.methods import METHODS
from benchmarks.experts.page import PAGE, render
from benchmarks.experts.passes import Passes
from benchmarks.experts.scores import RESULTS, keep, read, scored, write
from laplora.files.atomic import write_whole
from laplora.prompts.examples import label_tensor

RUNS = Path("runs") / "experts"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing of the chosen cells, and publish what there is."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.experts", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--task", choices=DEVELOPMENT, nargs="+", default=DEVELOPMENT, help="these tasks alone")
    parser.add_argument("--seed", type=int, choices=SEEDS, nargs="+", default=SEEDS, help="these seeds alone")
    parser.add_argument("--method", choices=list(METHODS), nargs="+", default=list(METHODS), help="these methods alone")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of what is kept")
    parser.add_argument("--no-training", action="store_true", help="leave out methods whose adapter is not trained yet")
    parser.add_argument("--publish", action="store_true", help="run nothing: write the figures and the page")
    options = parser.parse_args(arguments)
    # All tasks at the first seed before the next.
    chosen = [Cell(name, seed, options.runs) for seed in options.seed for name in options.task]
    if not options.publish:
        if options.data is None:
            parser.error("--data FOLDER is needed but with --publish")
        torch.set_num_threads(1)
        for cell in chosen:
            run(cell, options.data, options.method, trains=not options.no_training)
    publish(chosen)


def run(cell: Cell, data: Path, methods: Sequence[str], *, trains: bool) -> None:
    """Answer with every method that a cell has no figures of, and keep them."""
    missing = [name for name in methods if not _path(cell, name).is_file()]
    if not missing:
        return
    rows = cell.rows(data)
    labels, test = (label_tensor(some, len(cell.task.labels)) for some in (rows.labelled, rows.test))
    passes = Passes(cell, rows, lambda line: _say(f"{cell.name} {cell.seed} {line}"), trains)
    for name in missing:
        method = METHODS[name]
        if method.applies(cell.task) and all(map(passes.has, method.sources(cell.task))):
            answers, seconds = method.run(passes)
            keep(_path(cell, name), answers, labels, test, seconds)
            _say(f"{cell.name} {cell.seed} {name}: {seconds:.1f} s")


def publish(chosen: Sequence[Cell]) -> None:
    """Put the cells' figures in their place among the committed ones, and write the page of all."""
    made = [record for cell in chosen for record in scored(cell, {name: _path(cell, name) for name in METHODS})]
    kept = {(r["task"], r["seed"], r["method"]): r for r in (*read(RESULTS), *made) if r["method"] in METHODS}
    order = {name: place for place, name in enumerate((*DEVELOPMENT, *METHODS))}
    records = sorted(kept.values(), key=lambda r: (order[r["task"]], r["seed"], order[r["method"]]))
    write(records, RESULTS)
    write_whole(PAGE, render(records))


def _path(cell: Cell, method: str) -> Path:
    return cell.folder / "methods" / f"{method}.safetensors"


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
