"""Measures the gain of a user's labels over a decision model's own answers: ``python -m benchmarks.decision_models``.

    python -m benchmarks.decision_models --data FOLDER   # tickets, and models of the study as if they were remote
    python -m benchmarks.decision_models                 # tickets alone: a quarter of an hour of one core
    python -m benchmarks.decision_models --tables        # measures nothing: RESULTS.md again

``make peers`` installs the model (sparrow-decider), the tickets (sys1bench) and the rivals. FOLDER holds the data sets
of ``benchmarks.evidence``.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import laplora
from benchmarks.decision_models.own_models import MODELS, TASKS, own_rows
from benchmarks.decision_models.tickets import QUESTIONS, Rows, tickets
from benchmarks.evidence.calibrators import CALIBRATORS, Fit, tempered
from benchmarks.evidence.methods import served_answers
from benchmarks.evidence.noise import interval
from benchmarks.evidence.scores import Answers, Record, Unit, read, scored, write
from laplora.commands.calibrate import grouped_copies
from laplora.fitting.heads import HeadsPosterior
from laplora.predictive.cross_fitting import cross_fitted
from laplora.upstream.remote_model import RemoteModel, remote_model
from training.report.markdown import markdown_table

FOLDER = Path(__file__).parent
RESULTS, PAGE = FOLDER / "results.json", FOLDER / "RESULTS.md"
LABELS, SEEDS = (25, 50, 150, 500), (0, 1, 2)
#: Groups of tasks, and how their names begin.
GROUPS: dict[str, tuple[str, ...]] = {"Tickets": QUESTIONS, "Own models": TASKS}
#: Titles by method, in the order of the tables.
TITLES = {
    "map": "the model's own answer",
    "temperature": "temperature scaling (reference)",
    "beta": "beta calibration",
    "isotonic": "isotonic regression",
    "served": "**laplora**: what is served",
    "grouped": "**laplora**, rows of a template in one group",
    "rescaled": "**rescaled** alone: the text is not looked at",
    "corrected": "**corrected** alone",
    "frozen": "head alone, without the model",
}
RowsOf = Callable[[int], Rows]
_HEAD = """# A decision model, corrected by labels

`python -m benchmarks.decision_models` writes this page. A user has 25 to 500 labelled rows that a decision model has
answered. Up to 500 others are the test. Figures are means over three draws of labelled rows. All methods have the same
labels. NLL is in nats. The others are per cent: answers that are right, answers that are accepted at a target error of
5 %, and in brackets the wrong ones among these, over all draws. The served fit is that of `laplora calibrate`:
near-copies of a state are one group, and rows that are unlike the labelled ones go to a person.

**Tickets**: a model of 3 MB (sparrow-nano-general-v1.1) answers questions about support tickets (sys1bench 0.3.2),
whose labels follow a stated rule. They are written from 14 templates in six queues. In the tables of *the same
templates*, test rows are of the labelled rows' own templates; in those of *other templates*, of a template that no
labelled row has. **Own models**: tasks of
[the study](../evidence/RESULTS.md), of whose models the probabilities alone are seen. *tuned* was trained on 300 other
rows, anew for each draw, *zero-shot* on none.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.decision_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder with the data sets of benchmarks.evidence")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the page again")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    records = read(RESULTS)
    known = {(one["task"], one["budget"], one["seed"]) for one in records}
    for task, rows_of in () if options.tables else _tasks(options.data):
        for seed in SEEDS:
            for budget in LABELS:
                if (task, budget, seed) not in known:
                    records += measured(task, rows_of(seed), budget, seed)
                    print(f"{task}: {budget} labels, seed {seed}", flush=True)
                    write(records, RESULTS)
    PAGE.write_text(page(records), encoding="utf-8")


def _tasks(data: Path | None) -> Iterator[tuple[str, RowsOf]]:
    """Yield each task with what gives its rows of a seed."""
    for name in QUESTIONS:
        for apart in (False, True):
            of_tickets = lru_cache(partial(tickets, name, apart=apart))
            yield f"{name}, {'other templates' if apart else 'the same templates'}", lambda _, of=of_tickets: of()
    for name in TASKS if data else ():
        for model in MODELS:
            yield (
                f"{name}, {model}",
                lru_cache(lambda seed, name=name, model=model: own_rows(name, model, seed, data)),
            )


def measured(task: str, rows: Rows, budget: int, seed: int) -> list[Record]:
    """Return the record of each method, on labelled rows that the seed draws."""
    remote = remote_model("http://127.0.0.1", rows.question)
    order = torch.randperm(len(rows.fitted), generator=torch.Generator().manual_seed(seed))
    some = [rows.fitted[place] for place in order[:budget].tolist()]
    found = _fitted(remote, grouped_copies(some), seed, "group")
    heads, outputs = found.heads, found.outputs([dict(row) for row in rows.test])
    labels, zero_shot = heads.labelled.labels, heads.zero_shot
    assert zero_shot is not None
    own, test = zero_shot.held_out, zero_shot.log_probs(outputs)
    answers = {"map": Answers(own, test)}
    for name, fit in {"temperature": tempered, **{one: CALIBRATORS[one] for one in ("beta", "isotonic")}}.items():
        answers[name] = _calibrated(fit, own, labels, test, seed)
    answers["served"] = served_answers(heads, outputs)
    if "template" in some[0]:
        answers["grouped"] = served_answers(_fitted(remote, some, seed, "template").heads, outputs)
    for name in ("rescaled", "corrected", "frozen"):
        answers[name] = Answers(heads.answering[name].held_out, heads.answering[name].log_probs(outputs))
    test_labels = torch.tensor([remote.labels.index(str(row["label"])) for row in rows.test])
    return scored(Unit(task, "remote", budget, seed, 0), answers, labels, test_labels)


def _fitted(remote: RemoteModel, rows: Sequence[Mapping[str, Any]], seed: int, groups: str | None) -> HeadsPosterior:
    settings = laplora.FitSettings(seed=seed)
    found = laplora.fit(remote.classifier("remote"), rows, settings=settings, groups=groups, progress=False)
    assert isinstance(found, HeadsPosterior)
    return found


def _calibrated(fit: Fit, own: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, seed: int) -> Answers:
    """Return a calibrator's answers: to each labelled row by a fit without its fold."""
    held_out = cross_fitted(lambda some, rows: fit(own[some], labels[some])(own[rows]), len(labels), seed=seed)
    return Answers(held_out, fit(own, labels)(test))


def page(records: Sequence[Record]) -> str:
    """Return RESULTS.md."""
    tasks = dict.fromkeys(str(one["task"]) for one in records)
    parts = [_HEAD, _in_short(records)]
    for task in tasks:
        head = ["", *(f"{budget} labels: NLL; right; accepted (wrong)" for budget in LABELS)]
        rows = [[title, *(_cell(records, task, name, budget) for budget in LABELS)] for name, title in TITLES.items()]
        parts.append(f"## {task}\n\n{markdown_table(head, [row for row in rows if any(row[1:])])}\n")
    return "\n".join(parts)


def _of(records: Sequence[Record], task: str, name: str, budget: int) -> list[Mapping[str, Any]]:
    return [one for one in records if (one["task"], one["method"], one["budget"]) == (task, name, budget)]


def _cell(records: Sequence[Record], task: str, name: str, budget: int) -> str:
    some = _of(records, task, name, budget)
    if not some:
        return ""
    accepted = fmean(one["accepted"] for one in some)
    wrong = fmean(one["accepted"] * (one["accepted_error"] or 0.0) for one in some)
    error = f" ({100 * wrong / accepted:.1f})" if accepted else ""
    nll, right = (fmean(one[name] for one in some) for name in ("nll", "accuracy"))
    return f"{nll:.3f}; {100 * right:.0f}; {100 * accepted:.0f}{error}"


def against(records: Sequence[Record], names: tuple[str, ...], rival: str) -> tuple[list[int], float | None]:
    """Return in how many cells what is served is better than a rival, tied and worse, and the share of worse draws.

    ``names``: how the tasks' names begin. None: there is no such record.
    """
    tasks = [name for name in dict.fromkeys(str(one["task"]) for one in records) if name.startswith(names)]
    cells = [some for task in tasks for budget in LABELS if (some := _of(records, task, rival, budget))]
    of_rival = [found.verdict for some in cells if (found := interval(some, "vs_served"))]
    draws = [one["vs_served"][0] < 0 for some in cells for one in some]
    return [of_rival.count(name) for name in ("worse", "tied", "better")], fmean(draws) if draws else None


def _seeds(known: set[tuple[object, ...]], task: str) -> int:
    return min(len({seed for name, of, seed in known if (name, of) == (task, budget)}) for budget in LABELS)


def _in_short(records: Sequence[Record]) -> str:
    """Return how what is served compares with its rivals."""
    rows, missing = [], list[str]()
    for group, names in GROUPS.items():
        if not any(str(one["task"]).startswith(names) for one in records):
            missing.append(group.lower())
            continue
        for rival in ("map", "temperature", "beta", "isotonic", "rescaled", "frozen"):
            counts, lost = against(records, names, rival)
            rows.append([group, TITLES[rival], *counts, "" if lost is None else f"{100 * lost:.0f} %"])
    head = ["", "served against", "better", "tied", "worse", "draws in which served is worse"]
    known = {(one["task"], one["budget"], one["seed"]) for one in records}
    few = [task for task in dict.fromkeys(str(one["task"]) for one in records) if _seeds(known, task) < len(SEEDS)]
    absent, short = ", ".join(missing) or "no group", ", ".join(few) or "no task"
    said = (
        "Cells are a task and a number of labels. Better and worse are beyond the 95 % interval over draws and rows. "
        "Rows of a template are alike, so the interval is too narrow for new templates. "
        f"Not measured yet: {absent}; less than three draws: {short}."
    )
    return f"## In short\n\n{said}\n\n{markdown_table(head, rows)}"


if __name__ == "__main__":
    main()
