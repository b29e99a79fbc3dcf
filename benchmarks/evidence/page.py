"""RESULTS.md and its plots, made of the committed figures alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.evidence.decision import Cell, Difference, cells, reported, tally
from benchmarks.evidence.methods import METHODS, REFERENCE
from benchmarks.evidence.plan import BUDGETS, DEVELOPING, DRAWS, REPORTED, SEEDS, STYLES
from benchmarks.evidence.plots import write_plots
from benchmarks.evidence.results import Results
from laplora.files import write_whole
from training.report.markdown import markdown_table

FOLDER = Path(__file__).parent
PAGE = FOLDER / "RESULTS.md"

#: Set before any result: wins in NLL and in AURC on tasks with skill without a loss, and the largest ECE.
NLL_WINS, AURC_WINS, LARGEST_ECE = 6, 4, 0.03

_HEAD = """# When is a posterior worth its price?

Written by `python -m benchmarks.evidence --publish` from docs/results/evidence.json and the resamples beside it. The
question: a user has a number of labels, the *budget*. Two thirds train, one third calibrates. Which method gives the
best probabilities for a new row, and what does an answer cost?

Everything is compared with temperature scaling, at the same labels and on the same trained model. A **win** is a
difference whose 95 % interval lies below 0, a **loss** one above it. The interval is over test rows, trainings and
calibration draws (`decision.py`). Of a task with one seed it says nothing of other trainings, and is too narrow.
Nothing corrects for the number of comparisons: of 40 between equal methods, about one is a win and one a loss. NLL is
in nats. AURC is the mean error rate over all coverages when the least sure rows are left out first. ECE has 15 bins. An
answer's cost is in forward passes of the model.
"""

_HOW = """## How it was measured

- **Tasks** are dealt into halves in `plan.py`, before any result: rules and defaults are chosen on the developing half
  ({developing}). Conclusions rest on the reporting half alone ({reported}).
- **Rows**: all labelled rows of a task, official splits put together and dealt again, so that calibration rows are of
  the same kind as test rows. 500 test rows are the same for all budgets and seeds.
- **Training**: LoRA of rank 8 on q_proj and v_proj, AdamW at 5e-4 falling to 0, dropout 0.1, batches of 8. One training
  gives two models: *long*, after 8 epochs, and *early*, after 3 of the 8. No label chooses anything there.
- **Draws**: {draws} of calibration rows for each trained model, disjoint where a pool of at most 1,000 rows allows it.
- **Skill**: MAP is more accurate than the most frequent label on 97.5 % of the resamples of the test rows.
- **Laplace** is the exact posterior of the generalised Gauss-Newton matrix over all LoRA weights, one prior precision
  for all, chosen by the NLL of the calibration rows. What stands on top of it is fitted on the same rows.
"""


def write_page(results: Results) -> None:
    """Write the page and its plots."""
    every = cells(results)
    write_plots(every, FOLDER)
    write_whole(PAGE, render(every))


def render(every: Sequence[Cell]) -> str:
    """Return the page."""
    budgets = sorted({cell.budget for cell in every})
    parts = [_HEAD, _short(every, budgets), _targets(every, budgets)]
    parts += [_budget(every, budget) for budget in budgets]
    parts += [_developing(every, budgets), _without_skill(every, budgets), _ran(every)]
    parts.append(_HOW.format(developing=", ".join(DEVELOPING), reported=", ".join(REPORTED), draws=DRAWS))
    return "\n".join(part for part in parts if part)


def _short(every: Sequence[Cell], budgets: Sequence[int]) -> str:
    """Return the answer for a reader in a hurry: won, tied and lost by method and budget."""
    chosen = {budget: of for budget in budgets if (of := list(reported(every, budget)))}
    if not chosen:
        return "## In short\n\nNo task of the reporting half has run yet, so there is no answer.\n"
    lines = []
    for name in _methods([cell for of in chosen.values() for cell in of]):
        line = [METHODS[name].title, _range({c.forwards for of in chosen.values() for c in of if c.method == name})]
        for of in chosen.values():
            nll = tally(of, name, "nll")
            gains = [c.differences["nll"].mean for c in of if c.method == name]
            line.append(f"{len(nll.wins)} / {len(nll.ties)} / {len(nll.losses)}, {_signed(gains)}" if gains else "-")
        lines.append(line)
    tasks = ", ".join(f"{len({c.task for c in of})} at {budget}" for budget, of in chosen.items())
    return (
        "## In short\n\nTasks of the reporting half on which the model has skill at all, by the number of labels: "
        f"{tasks}. On how many of them is the method's NLL better than temperature scaling's, level with it, or worse; "
        "and the mean difference, nats:\n\n"
        + markdown_table(["method", "cost", *(f"{budget} labels" for budget in chosen)], lines)
    )


def _targets(every: Sequence[Cell], budgets: Sequence[int]) -> str:
    """Return which methods meet the targets at each budget."""
    lines = []
    for budget in budgets:
        chosen = list(reported(every, budget))
        tasks = {cell.task for cell in chosen}
        for name in _methods(chosen):
            nll, aurc = tally(chosen, name, "nll"), tally(chosen, name, "aurc")
            worst = max(cell.values["ece"] for cell in chosen if cell.method == name)
            if nll.wins and not nll.losses:
                lines.append(
                    [
                        f"{budget}",
                        METHODS[name].title,
                        f"{len(nll.wins)} / {len(nll.losses)} of {len(tasks)}",
                        f"{len(aurc.wins)} / {len(aurc.losses)}",
                        f"{worst:.3f}",
                    ]
                )
    heading = ["labels", "method", "NLL: won / lost", "AURC: won / lost", "largest ECE"]
    table = markdown_table(heading, lines) if lines else "None.\n"
    return (
        "## Targets\n\n"
        f"Set before the study: NLL won on {NLL_WINS} tasks with skill and lost on none, AURC won on {AURC_WINS} and "
        f"lost on none, ECE of at most {LARGEST_ECE:.2f} on each. Methods that won in NLL on a task of the reporting "
        f"half and lost on none:\n\n{table}"
    )


def _budget(every: Sequence[Cell], budget: int) -> str:
    """Return the tables of one budget: methods over tasks, and their differences task by task."""
    chosen = list(reported(every, budget))
    if not chosen:
        return ""
    tasks = sorted({cell.task for cell in chosen}, key=REPORTED.index)
    lines, per_task = [], []
    for name in _methods(chosen):
        of = {cell.task: cell for cell in chosen if cell.method == name}
        nll, aurc = tally(chosen, name, "nll"), tally(chosen, name, "aurc")
        price = {cell.forwards for cell in of.values()}
        lines.append(
            [
                METHODS[name].title,
                _range(price),
                f"{len(nll.wins)} / {len(nll.ties)} / {len(nll.losses)}",
                *(_signed([c.by_style[style] for c in of.values() if style in c.by_style]) for style in STYLES),
                f"{len(aurc.wins)} / {len(aurc.ties)} / {len(aurc.losses)}",
                f"{1000 * _mean([c.differences['aurc'].mean for c in of.values()]):+.2f}",
                f"{_mean([c.values['ece'] for c in of.values()]):.3f} "
                f"({_mean([c.values['ece_calibrated'] for c in of.values()]):.3f})",
                f"{_mean([c.values['accuracy'] for c in of.values()]):.3f}",
            ]
        )
        per_task.append([METHODS[name].title, *(_shown(of[t].differences["nll"]) if t in of else "-" for t in tasks)])
    own = [next(c for c in chosen if c.task == task and c.method == REFERENCE) for task in tasks]
    heading = [
        "method",
        "cost",
        "NLL: won / tied / lost",
        *(f"mean, {style}" for style in STYLES),
        "AURC: won / tied / lost",
        "mean, 1/1000",
        "ECE (calibrated)",
        "accuracy",
    ]
    return (
        f"## {budget} labels\n\n{len(tasks)} tasks of the reporting half with skill. Means are over tasks, of "
        f"differences from temperature scaling. In brackets behind the ECE: what a calibrated model would measure on "
        f"the same confidences, which is not 0 with so few rows.\n\n{markdown_table(heading, lines)}\n"
        f"NLL less that of temperature scaling, 95 % interval; **bold** excludes 0:\n\n"
        f"{markdown_table(['method', *(_named(c) for c in own)], per_task)}\n"
        + "\n".join(_task_line(every, c) for c in own)
        + "\n"
    )


def _named(cell: Cell) -> str:
    """Return a cell's task, with its seeds where some are missing."""
    return cell.task if cell.seeds == len(SEEDS) else f"{cell.task} ({cell.seeds} of {len(SEEDS)} seeds)"


def _task_line(every: Sequence[Cell], t: Cell) -> str:
    """Return what temperature scaling, whose cell it is, and MAP have on a task."""
    m = next(c for c in every if (c.task, c.budget, c.method) == (t.task, t.budget, "map"))
    return (
        f"- {t.task}: accuracy {m.values['accuracy']:.3f}; NLL {m.values['nll']:.3f} of MAP, {t.values['nll']:.3f} of "
        f"temperature scaling; ECE {m.values['ece']:.3f} and {t.values['ece']:.3f}; {t.seeds} seed(s)"
    )


def _developing(every: Sequence[Cell], budgets: Sequence[int]) -> str:
    """Return the developing half's differences: no conclusion rests on them."""
    return _half(
        [c for c in every if c.developing and c.skill],
        budgets,
        "## The developing half\n\nRules and defaults were chosen here, so nothing is concluded from it. NLL less that "
        "of temperature scaling.\n\n",
    )


def _without_skill(every: Sequence[Cell], budgets: Sequence[int]) -> str:
    """Return the differences where MAP has no skill."""
    return _half(
        [c for c in every if not c.skill],
        budgets,
        "## Tasks without skill\n\nMAP is not clearly better than the most frequent label here, and there is little to "
        "tell rows apart by. NLL less that of temperature scaling.\n\n",
    )


def _half(of: Sequence[Cell], budgets: Sequence[int], head: str) -> str:
    columns = [(b, t) for b in budgets for t in sorted({c.task for c in of if c.budget == b})]
    seeds = {(c.budget, c.task): _named(c) for c in of if c.method == REFERENCE}
    if not columns:
        return ""
    by = {(c.budget, c.task, c.method): c for c in of}
    lines = [
        [
            METHODS[name].title,
            *(_shown(by[b, t, name].differences["nll"]) if (b, t, name) in by else "-" for b, t in columns),
        ]
        for name in _methods(of)
    ]
    return head + markdown_table(["method", *(f"{seeds[b, t]}, {b}" for b, t in columns)], lines)


def _ran(every: Sequence[Cell]) -> str:
    """Return what has run, and what has not."""
    done = {(c.task, c.budget): c.units for c in every if c.method == REFERENCE}
    wanted = len(SEEDS) * len(STYLES)
    lines = [
        [task, *(f"{done.get((task, budget), 0)} of {wanted}" for budget in sorted(BUDGETS))]
        for task in (*DEVELOPING, *REPORTED)
    ]
    return (
        "## What has run\n\nTrained models, by task and budget: three seeds, each long and early. `subjects` and "
        "`fields` have too few rows for 1,500 labels.\n\n" + markdown_table(["task", *map(str, sorted(BUDGETS))], lines)
    )


def _methods(of: Sequence[Cell]) -> list[str]:
    have = {cell.method for cell in of}
    return [name for name in METHODS if name in have and name != REFERENCE]


def _shown(difference: Difference) -> str:
    text = f"{difference.mean:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})"
    return text if difference.verdict == "tie" else f"**{text}**"


def _signed(values: Sequence[float]) -> str:
    return f"{_mean(values):+.4f}" if values else "-"


def _range(values: set[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
