"""``python -m benchmarks.evidence``: train, pass, fit and answer what the plan asks for; then the page.

    python -m benchmarks.evidence --data FOLDER                    # everything that is missing
    python -m benchmarks.evidence --data FOLDER --task snips --seed 0 --labels 450 --base smollm2-135m-instruct
    python -m benchmarks.evidence --data FOLDER --publish          # runs nothing: figures and page of what there is
    python -m benchmarks.evidence --publish                        # the page of the published figures alone
    python -m benchmarks.evidence --data FOLDER --pack FOLDER      # runs nothing: a file a task with all answers
    python -m benchmarks.evidence --add METHOD.py FILE [FILE ...]  # a method of one's own beside all others, untrained

FOLDER holds the data sets as their authors publish them (``benchmarks.evidence.rows``). Adapters, the arrays of every
pass and each method's answers are kept in --runs, so a stopped call continues. Several calls can run side by side on
other cells. A method that docs/results/evidence.json has is not run again, so the study can go on with an empty --runs
on another machine; the two methods that all are compared with are run beside a new one. To run everything again, move
that file away.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Container, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.evidence.cells import Cell
from benchmarks.evidence.frontier import picture
from benchmarks.evidence.given_away import added, packed
from benchmarks.evidence.methods import METHODS
from benchmarks.evidence.noise import has_skill
from benchmarks.evidence.page import MOVED, PAGE, places_of, render
from benchmarks.evidence.passes import Passes, notes_of
from benchmarks.evidence.plan import (
    BASES,
    DOUBLED,
    DRAWS,
    HALVED,
    LABELS,
    OTHER_LABELS,
    REPORTED,
    SEEDS,
    SMALL,
    Training,
    planned,
    unreported,
)
from benchmarks.evidence.scores import REFERENCE, RESULTS, SERVED, Answers, Record, Unit, read, scored, write
from benchmarks.evidence.tasks import TASKS
from laplora.errors import LaploraError, NonFiniteError
from laplora.files.atomic import file_sha256, write_tensors, write_whole

RUNS = Path("runs") / "evidence"
_COMPARED = (REFERENCE, SERVED)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing of the chosen cells, and publish what there is."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--task", choices=list(TASKS), nargs="+", metavar="TASK", help="these tasks alone")
    parser.add_argument("--seed", type=int, choices=SEEDS, nargs="+", default=SEEDS, help="these seeds alone")
    parser.add_argument("--labels", type=int, choices=(LABELS, *OTHER_LABELS), nargs="+", help="these numbers alone")
    parser.add_argument("--base", choices=BASES, nargs="+", help="these bases alone")
    parser.add_argument(
        "--draw", type=int, choices=range(DRAWS), nargs="+", default=range(DRAWS), help="these draws alone"
    )
    names: dict[str, Any] = {"choices": list(METHODS), "nargs": "+", "metavar": "METHOD"}
    parser.add_argument("--method", **names, default=list(METHODS), help="these methods alone")
    parser.add_argument("--without", **names, default=(), help="all but these methods")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of what is kept")
    parser.add_argument("--no-training", action="store_true", help="leave out methods whose adapter is not trained yet")
    parser.add_argument("--publish", action="store_true", help="run nothing: write the figures and the page")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="run nothing: write a file a task with all answers")
    parser.add_argument("--add", type=Path, metavar="METHOD.py", help="run nothing: measure it on files of --pack")
    parser.add_argument("files", type=Path, nargs="*", metavar="FILE", help="of --add")
    options = parser.parse_args(arguments)
    chosen = [Cell(of, options.runs) for seed in options.seed for of in _chosen(options, seed)]
    if options.add:
        if not options.files:
            parser.error("--add METHOD.py takes files of --pack too")
        for record in (record for file in options.files for record in added(options.add, file)):
            print(json.dumps(record))
        return
    if options.publish and options.data is None:
        publish([])
        return
    if options.data is None:
        parser.error("--data FOLDER is needed")
    if not chosen:
        parser.error("the plan has no such cell")
    if options.publish:
        reported = [cell for cell in chosen if cell.training in planned(cell.training.seed) and cell.folder.is_dir()]
        publish([record for cell in reported for record in figures(cell, options.data)])
        return
    if options.pack:
        pack(chosen, options.data, options.pack)
        return
    torch.set_num_threads(1)
    methods = [name for name in options.method if name not in options.without]
    trains = not options.no_training
    known = {place_of(record) for record in read()}
    if failed := sum(run(cell, options.data, methods, options.draw, known, trains=trains) for cell in chosen):
        sys.exit(f"{failed} methods failed: run them again, or see above why")


def _chosen(options: argparse.Namespace, seed: int) -> list[Training]:
    """Return the trainings of a seed; a task that the plan does not report on has those of the main table."""
    every = planned(seed)
    every += [unreported(name, seed) for name in options.task or () if name not in {one.task for one in every}]
    return [
        one
        for one in every
        if one.task in (options.task or [one.task])
        and one.budget in (options.labels or [one.budget])
        and one.base in (options.base or [one.base])
    ]


def run(
    cell: Cell,
    data: Path,
    methods: Sequence[str],
    draws: Sequence[int],
    known: Container[tuple[object, ...]] = (),
    *,
    trains: bool = True,
) -> int:
    """Answer with every method that a cell has no answers of, keep them, and return how many failed.

    Args:
        known: the places of published records, which are not run again; but the methods that all are compared with
            are, beside another one.
    """
    missing = list[tuple[int, str]]()
    for draw in draws:
        published = {name for name in METHODS if (*astuple(_unit(cell, draw)), name) in known}
        planned = [name for name in methods if draw < METHODS[name].draws and METHODS[name].planned(cell)]
        names = [name for name in planned if name not in published and not cell.answers(draw, name).is_file()]
        again = [name for name in _COMPARED if name in published and not cell.answers(draw, name).is_file()]
        missing += [(draw, name) for name in (*again, *names)] if names else []
    if not missing:
        return 0
    passes, failed = Passes(cell, cell.rows(data), lambda line: _say(f"{cell} {line}"), trains), 0
    for draw, name in missing:
        method = METHODS[name]
        if not all(map(passes.has, method.sources(cell.task))):
            continue
        try:
            if trains or not method.trains:
                answers = method.run(passes, draw)
                _keep(passes, draw, name, answers)
                _say(f"{cell} draw {draw} {name}: {answers.seconds:.1f} s")
        except (LaploraError, ValueError, RuntimeError) as error:  # of one library; the other methods go on
            failed += 1
            _say(f"{cell} draw {draw} {name}: {error}")
    return failed


def figures(cell: Cell, data: Path) -> list[Record]:
    """Return the figures of a cell's answers that are kept."""
    passes, of, records = Passes(cell, cell.rows(data), _say, trains=False), cell.training, list[Record]()
    main = (of.base, of.budget) == (SMALL, LABELS) and of.task in REPORTED and not cell.task.template.takes_choices
    for draw, answers in _kept(passes).items():
        labels, test = passes.labels()[passes.places(draw)], passes.test_labels()
        parts = {"": torch.ones_like(test).bool()}
        if main:  # every other row of some labels goes
            other = torch.arange(len(test)) % 2 == 0
            parts |= {HALVED: other | (test != 0), DOUBLED: other | (test == 0)}
        for end, rows in parts.items():
            some = {name: one.of_test(rows) for name, one in answers.items() if not end or name in MOVED}
            records += scored(replace(_unit(cell, draw), task=of.task + end), some, labels, test[rows])
    return records


def publish(made: Sequence[Record], results: Path = RESULTS, page: Path = PAGE) -> None:
    """Put figures that are new beside the committed ones, and write the page and the picture of all."""
    kept = {
        place_of(record): dict(record)
        for record in (*made, *read(results))
        if "forwards" in record and record["method"] in METHODS
    }
    skilled = {name: has_skill(one.methods) for name, one in places_of(list(kept.values())).items()}
    order = {name: number for number, name in enumerate(METHODS)}
    records = sorted(kept.values(), key=lambda record: (*place_of(record)[:-1], order[record["method"]]))
    for record in records:
        record["skill"] = skilled[record["task"], record["base"], record["budget"]]
    write(records, results)
    write_whole(page, render(records))
    if drawn := picture(records):
        write_whole(page.with_name("frontier.svg"), drawn)


def _unit(cell: Cell, draw: int) -> Unit:
    of = cell.training
    return Unit(of.task, of.base, of.budget, of.seed, draw)


def place_of(record: Record) -> tuple[object, ...]:
    """Return the task, base, budget, seed, draw and method of a record."""
    return tuple(record[name] for name in ("task", "base", "budget", "seed", "draw", "method"))


def pack(chosen: Sequence[Cell], data: Path, folder: Path) -> None:
    """Write a file a task with the answers of its cells; notes are the hashes of the rows."""
    for task in dict.fromkeys(cell.training.task for cell in chosen):
        tensors, notes = dict[str, torch.Tensor](), dict[str, str]()
        for cell in chosen:
            if cell.training.task != task or not cell.folder.is_dir():
                continue
            passes = Passes(cell, cell.rows(data), _say, trains=False)
            if passes.has("adapter") and (kept := _kept(passes)):
                tensors |= packed(passes, kept)
                of = cell.training
                notes[f"{of.base}/{of.budget}/{of.seed}"] = _all_rows(passes)
        if tensors:
            write_tensors(folder / f"{task}.safetensors", tensors, notes)
            _say(f"{folder / task}.safetensors: {file_sha256(folder / f'{task}.safetensors')}")


def _kept(passes: Passes) -> dict[int, dict[str, Answers]]:
    """Return the answers that are kept of a cell, by draw and method; DataError for those of other rows."""
    found: dict[int, dict[str, Answers]] = {}
    for draw in range(DRAWS):
        paths = {path.stem: path for path in passes.cell.answers(draw, "any").parent.glob("*.safetensors")}
        if some := {name: _answers(paths[name], passes) for name in METHODS if name in paths}:
            found[draw] = some
    return found


def _keep(passes: Passes, draw: int, name: str, answers: Answers) -> None:
    if bool(answers.test.isnan().any()):
        raise NonFiniteError("an answer to a test row is NaN")
    path = passes.cell.answers(draw, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value for name, value in vars(answers).items() if isinstance(value, torch.Tensor)}
    notes = {"seconds": f"{answers.seconds:.2f}", "passes": str(answers.passes), "made_from": _all_rows(passes)}
    write_tensors(path, tensors, notes)


def _answers(path: Path, passes: Passes) -> Answers:
    notes = notes_of(path, _all_rows(passes))
    return Answers(**load_file(path), seconds=float(notes["seconds"]), passes=float(notes["passes"]))


def _all_rows(passes: Passes) -> str:
    return passes.made_from((*passes.labelled_rows, *passes.rows.test))


def _say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
