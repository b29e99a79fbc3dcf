"""Counts what decisions cost by tables of costs, and their errors by label: ``python -m benchmarks.costs``.

    python -m benchmarks.costs --data FOLDER   # a quarter of an hour of one core; a stopped run continues
    python -m benchmarks.costs --tables        # measures nothing: RESULTS.md again

FOLDER holds the data sets of ``benchmarks.evidence``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from benchmarks.evidence.rows_read_once import NAMES, SEEDS, TEST, ReadTask, Record, command
from laplora.answers.review_scores import thresholds_at
from laplora.decisions.costs import cost_figures
from laplora.decisions.uncertainty import Ruled, ruled
from laplora.decisions.wanted import OTHERS, Costs, Wanted
from laplora.execution.progress import Silent
from laplora.fitting.fitted_heads import fit_heads
from laplora.linearised import entropy
from laplora.settings import FitSettings
from training.report.markdown import markdown_table

FOLDER = Path(__file__).parent
RESULTS, PAGE = FOLDER / "results.json", FOLDER / "RESULTS.md"
COUNTS = (150, 450)
#: By heading what a look costs, and a wrong answer to a row of the first label and of the others.
CASES = {
    "A wrong answer costs 10 looks": (1.0, 10.0, 10.0),
    "A wrong answer costs 100 looks for rows of the first label, 10 for others": (1.0, 100.0, 10.0),
    "A look costs 3, a wrong answer 40 for rows of the first label, 4 for others": (3.0, 40.0, 4.0),
}
#: Target risks of answers of the first label, and of the others.
TARGETS = (0.02, 0.1)
#: By heading those that are asked for; None: one for both together.
RISKS: dict[str, tuple[float, float | None]] = {
    "2 % for the first, 10 % for others": TARGETS,
    "5 % for all": (0.05, None),
    "2 % for all": (0.02, None),
}
#: A draw is above its target if its error rate is higher by more than this.
CHANCE = 0.01
METHODS = {
    "laplora": "**laplora**",
    "probable": "most probable label",
    "fitted": "fitted threshold",
    "risk": "target risk 5 %",
    "encoder": "MiniLM",
    "none": "none reviewed",
}
_HEAD = f"""# Decisions by what mistakes cost

`python -m benchmarks.costs` writes this page. Labelled rows fit the heads that serve. Each of {TEST} test rows is
accepted or goes to a person. The first tables say what a test row costs on average, divided by a look's cost: an
accepted wrong answer costs what the table's title says, and a reviewed row one look. If all are reviewed, it is 1.
Figures are means over {len(SEEDS)} seeds, which draw from one pool of rows, so they are not independent. Which label is
first is the task's own order. Decisions are the rule's alone: an artifact also reviews unfamiliar and cut inputs.

- **laplora**: the label of least expected cost, accepted if it is expected to cost at most a look (`costs`).
- *most probable label*: the same rule with the most probable label. With equal costs that is the same label.
- *fitted threshold*: in place of a look, the limit that was cheapest for the labelled rows' out-of-fold answers.
- *target risk 5 %*: the rule without costs, which cannot know them.
- *MiniLM*: the first rule on logistic regression on embeddings, its penalty chosen by the NLL of five folds.
- *none reviewed*: the most probable label of every row.

*Estimate* is what a report shows without test rows: the cost of out-of-fold answers and the ends of its 95 % interval.
*Held* counts draws whose interval has laplora's cost in it. That cost has noise too, being of {TEST} rows.
"""
_RISKS_HEAD = f"""
## Target risks by answered label

A cell is the share of test rows that are accepted, per cent; then the error rates of accepted answers of the first
label and of the others, per cent, over all seeds. The last rows count draws more than {100 * CHANCE:g} point above
{100 * TARGETS[0]:g} % for the first label, and above {100 * TARGETS[1]:g} % for the others, whatever was asked for.

"""


def measured(task: ReadTask, labels: int, seed: int) -> Record:
    """Return the figures of one draw: by heading of ``CASES`` and of ``RISKS``."""
    draw, settings, names = task.drawn(seed, labels), FitSettings(seed=seed), task.classifier.labels
    heads = fit_heads(task.names, task.outputs.take(draw.places), draw.labelled, settings, Silent())
    best, truth, right = heads.choice.name, draw.truth, draw.labelled.labels
    answering = heads.answering[best]
    held_out, probs = answering.held_out.exp(), answering.log_probs(task.outputs.take(draw.test)).exp()
    penalties = {"C": [1, 10, 100, 1000]}
    search = GridSearchCV(LogisticRegression(max_iter=1000), penalties, scoring="neg_log_loss", cv=5)
    search.fit(task.embeddings(draw.places), right.numpy())
    alone = torch.zeros_like(probs)
    alone[:, search.classes_] = torch.from_numpy(search.predict_proba(task.embeddings(draw.test))).to(alone)

    def by(wanted: Wanted, probs: torch.Tensor) -> Ruled:
        rule = thresholds_at(heads.predictives[best].thresholds, heads.scores[best], wanted, names).review
        return ruled(rule, entropy(probs), probs, names, torch.ones_like(probs, dtype=torch.bool))

    found: Record = {"costs": {}, "risks": {}}
    for case, (look, first, others) in CASES.items():
        costs = Costs(review=look, wrong={names[0]: first, OTHERS: others})
        matrix, probable = costs.matrix(names), probs.argmax(1)
        cheap, held, risk = by(costs, probs), by(costs, held_out), by(0.05, probs)
        rival = by(costs, alone)
        assert cheap.expected_cost is not None
        assert held.expected_cost is not None
        limit = cheapest_limit(held.expected_cost, matrix[right, held.answered] - look)
        of_probable = (probs.double() @ matrix).gather(1, probable[:, None])[:, 0]
        estimate = cost_figures(matrix, look, held.answered, right, ~held.unsure)
        accepted = {
            "laplora": (cheap.answered, ~cheap.unsure),
            "probable": (probable, of_probable <= look),
            "fitted": (cheap.answered, cheap.expected_cost <= limit),
            "risk": (risk.answered, ~risk.unsure),
            "encoder": (rival.answered, ~rival.unsure),
            "none": (probable, torch.ones(len(truth), dtype=torch.bool)),
        }
        paid = {
            one: cost_figures(matrix, look, answered, truth, taken)["mean"] / look
            for one, (answered, taken) in accepted.items()
        }
        ends = [estimate["mean"] / look, *(end / look for end in estimate["interval"])]
        found["costs"][case] = paid | {"accepted": float((~cheap.unsure).double().mean()), "estimate": ends}
    for case, (first, rest) in RISKS.items():
        of = by(first if rest is None else {names[0]: first, OTHERS: rest}, probs)
        groups = [~of.unsure & ((of.answered == 0) == is_first) for is_first in (True, False)]
        found["risks"][case] = [[int(one.sum()), int((one & (of.answered != truth)).sum())] for one in groups]
    return found


def cheapest_limit(expected: torch.Tensor, gained: torch.Tensor) -> float:
    """Return the limit on expected cost (rows,) up to which accepting saved most; below 0 where it saved nothing.

    Args:
        gained: (rows,) what accepting a row costs more than a look, with its label known.
    """
    order = expected.argsort(stable=True)
    total = gained[order].cumsum(0)
    return float(expected[order][total.argmin()]) if bool(total.min() < 0) else -1.0


def page(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the page of the records."""
    cells = {
        (name, count): some
        for count in COUNTS
        for name in NAMES
        if (some := [one for one in records if (one["task"], one["labels"]) == (name, count)])
    }
    text = _HEAD
    for case in CASES:
        heading = ["task", "labels", *METHODS.values(), "accepted, %", "estimate", "held"]
        by_cell = {cell: [one["costs"][case] for one in some] for cell, some in cells.items()}
        every = {("all", ""): [one for some in by_cell.values() for one in some]} if by_cell else {}
        rows = ([*cell, *_costs(some)] for cell, some in (by_cell | every).items())
        text += f"\n## {case}\n\n{markdown_table(heading, rows)}"
    return text + _RISKS_HEAD + markdown_table(["task", "labels", *RISKS], _risks(cells))


def _costs(some: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Give the cells of seeds at one table of costs."""
    for method in METHODS:
        yield f"{fmean(one[method] for one in some):.2f}"
    yield f"{100 * fmean(one['accepted'] for one in some):.0f}"
    mean, low, high = (fmean(one["estimate"][end] for one in some) for end in range(3))
    held = sum(one["estimate"][1] <= one["laplora"] <= one["estimate"][2] for one in some)
    yield from (f"{mean:.2f} ({low:.2f} to {high:.2f})", f"{held} of {len(some)}")


def _risks(cells: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]]) -> Iterator[list[Any]]:
    """Give the rows of the table of target risks."""
    for cell, some in cells.items():
        row: list[Any] = [*cell]
        for case in RISKS:
            taken, wrong = torch.tensor([one["risks"][case] for one in some]).sum(0).T.tolist()
            errors = (f"{100 * bad / of:.1f}" if of else "none" for bad, of in zip(wrong, taken, strict=True))
            row.append(f"{100 * sum(taken) / (len(some) * TEST):.0f}: {', '.join(errors)}")
        yield row
    for count in COUNTS:
        draws = [one for (_, of), some in cells.items() if of == count for one in some]
        above = []
        for case in RISKS:
            counts = [
                sum(bad > (target + CHANCE) * taken for taken, bad in (one["risks"][case][place] for one in draws))
                for place, target in enumerate(TARGETS)
            ]
            above.append(f"{counts[0]}, {counts[1]} of {len(draws)}")
        yield ["draws above", count, *above]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write the page."""
    units = [{"labels": count, "seed": seed} for count in COUNTS for seed in SEEDS]
    command(arguments, __doc__, FOLDER, units, measured, page)


if __name__ == "__main__":
    main()
