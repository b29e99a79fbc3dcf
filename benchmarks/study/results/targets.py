"""What the study was to show, set before it ran, and whether the published figures show it.

Everything is about the *recommended* method: the one that a task's calibration split recommends, seed by seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from statistics import fmean
from typing import Literal

from benchmarks.study.results.records import Tables
from benchmarks.study.results.scores import Bounds, outcome, shown

Verdict = Literal["met", "missed", "open"]

#: The targets were set for this many tasks; on fewer, one that nothing contradicts yet is open.
PLANNED_TASKS = 8
ECE_LIMIT = 0.05
ECE_ROWS = 500
ACCURACY_MARGIN = 0.005
AUROC_MARGIN = 0.01
AUROC_LEAD = 0.03
COVERAGE_MARGIN = 0.02


@dataclass(frozen=True)
class TaskFigures:
    """One task's figures, means over seeds.

    Attributes:
        recommended: the methods recommended, in the order of the seeds.
        gap: MAP's mean confidence less its accuracy, with its interval.
        against_map, against_temperature: NLL of the recommended less the reference's.
        accuracy_change: accuracy of the recommended less MAP's.
        auroc_lead: AUROC of the chosen review score less that of MAP's entropy, both on the recommended method's
            mistakes; None where no seed has both mistakes and right answers.
        coverage: of the recommended method's LAC sets, and the nominal level.
    """

    task: str
    rows: int
    calibration_rows: int
    seeds: int
    recommended: tuple[str, ...]
    map_nll: float
    recommended_nll: float
    map_ece: float
    recommended_ece: float
    gap: Bounds
    against_map: Bounds
    against_temperature: Bounds
    accuracy_change: float
    auroc_lead: float | None
    coverage: tuple[float, float]

    @property
    def overconfident(self) -> bool:
        """Whether MAP is: an ECE above the limit, or more confident than right beyond noise."""
        return self.map_ece > ECE_LIMIT or self.gap[1] > 0


@dataclass(frozen=True)
class Target:
    """One target, the figures that decide it, and the verdict."""

    text: str
    figures: str
    verdict: Verdict


def coverage_error(nominal: float, calibration_rows: int) -> float:
    """Return the standard deviation of split-conformal coverage over draws of the calibration rows.

    Given n of them the coverage of further rows is Beta distributed with a mean of about the nominal a (Marques F.
    2023, arXiv 2303.02770): sqrt(a (1 - a) / (n + 2)). Seeds that share calibration rows do not average it out.
    """
    return sqrt(nominal * (1 - nominal) / (calibration_rows + 2))


def task_figures(tables: Tables) -> tuple[TaskFigures, ...]:
    """Return the figures of every published task, in the order of their names."""
    result = []
    for task in tables["tasks"].itertuples():
        scores = tables["scores"][tables["scores"].task == task.task]
        base, best = scores[scores.method == "map"], scores[scores.recommended.astype(bool)]
        seeds = tables["seeds"][tables["seeds"].task == task.task]
        leads = (seeds.review_auroc.astype(float) - seeds.map_entropy_auroc.astype(float)).dropna()
        sets = [s.conformal[s.recommended]["lac"] for s in seeds.itertuples()]
        result.append(
            TaskFigures(
                task=task.task,
                rows=task.rows,
                calibration_rows=task.calibration_rows,
                seeds=len(base),
                recommended=tuple(best.method),
                map_nll=base.nll.mean(),
                recommended_nll=best.nll.mean(),
                map_ece=base.ece.mean(),
                recommended_ece=best.ece.mean(),
                gap=task.gap,
                against_map=task.against_map,
                against_temperature=task.against_temperature,
                accuracy_change=best.accuracy.mean() - base.accuracy.mean(),
                auroc_lead=leads.mean() if len(leads) else None,
                coverage=(fmean(s["coverage"] for s in sets), sets[0]["nominal"]),
            )
        )
    return tuple(result)


def judge(tasks: Sequence[TaskFigures]) -> tuple[Target, ...]:
    """Return every target with its figures and verdict; what was missed stays in."""
    versus_map = {t.task: outcome(*t.against_map[1:]) for t in tasks}
    over = [t for t in tasks if t.overconfident]
    versus = {t.task: outcome(*t.against_temperature[1:]) for t in tasks}
    lost = [f"{t.task} {shown(t.against_temperature)}" for t in tasks if versus[t.task] == "loss"]
    wins, ties = (list(versus.values()).count(kind) for kind in ("win", "tie"))
    large = [t for t in tasks if t.rows >= ECE_ROWS]
    largest = f"; largest {max(t.recommended_ece for t in large):.3f}" if large else ""
    leads = [(t.task, t.auroc_lead) for t in tasks if t.auroc_lead is not None]
    ahead = [f"{task} {lead:+.3f}" for task, lead in leads if lead >= AUROC_LEAD]
    return (
        _about_every(
            f"NLL below MAP's, beyond noise, wherever MAP is overconfident (ECE above {ECE_LIMIT}, or mean confidence "
            "above accuracy beyond noise)",
            *(tasks, len(over), "not won"),
            [f"{t.task} {shown(t.against_map)}" for t in over if versus_map[t.task] != "win"],
        ),
        _about_every(
            "NLL never above MAP's beyond noise",
            *(tasks, len(tasks), "worse"),
            [f"{t.task} {shown(t.against_map)}" for t in tasks if versus_map[t.task] == "loss"],
        ),
        Target(
            f"NLL beats or ties temperature scaling on at least {_share(6, tasks)} tasks (6 of 8)",
            f"{wins} won, {ties} tied, {len(lost)} lost{_listed('lost', lost)}",
            _enough(wins + ties, 6, tasks),
        ),
        _about_every(
            f"ECE at most {ECE_LIMIT} on every task with {ECE_ROWS} or more test rows",
            *(tasks, len(large), "above"),
            [f"{t.task} {t.recommended_ece:.3f}" for t in large if t.recommended_ece > ECE_LIMIT],
            before=largest,
        ),
        _about_every(
            f"accuracy at most {100 * ACCURACY_MARGIN:.1f} points below MAP's",
            *(tasks, len(tasks), "below"),
            [f"{t.task} {100 * t.accuracy_change:+.1f}" for t in tasks if t.accuracy_change < -ACCURACY_MARGIN],
        ),
        _about_every(
            f"the review score's AUROC never more than {AUROC_MARGIN} behind MAP's entropy",
            *(tasks, len(leads), "behind"),
            [f"{task} {lead:+.3f}" for task, lead in leads if lead < -AUROC_MARGIN],
        ),
        Target(
            f"the review score's AUROC at least {AUROC_LEAD} ahead on at least {_share(3, tasks)} tasks (3 of 8)",
            f"{len(ahead)} of {len(leads)}{_listed('ahead', ahead)}",
            _enough(len(ahead), 3, tasks),
        ),
        _coverage_target(tasks),
    )


def _coverage_target(tasks: Sequence[TaskFigures]) -> Target:
    measured = [(t, *t.coverage, coverage_error(t.coverage[1], t.calibration_rows)) for t in tasks]
    # the files hold 6 digits, so a difference of the margin itself can come out a rounding above it
    far = [f"{t.task} {c:.3f} ± {e:.3f}" for t, c, level, e in measured if round(abs(c - level), 6) > COVERAGE_MARGIN]
    errors = [f"{100 * e:.1f} points ({n} rows)" for e, n in sorted({(e, t.calibration_rows) for t, *_, e in measured})]
    few = " to ".join(dict.fromkeys([*errors[:1], *errors[-1:]]))
    levels = " or ".join(f"{100 * level:g} %" for level in dict.fromkeys(level for _, _, level, _ in measured))
    return _about_every(
        f"conformal coverage within {100 * COVERAGE_MARGIN:g} points of the nominal {levels} (LAC sets of the "
        "recommended method)",
        *(tasks, len(tasks), "off", far),
        behind=f"; standard deviation that the calibration rows allow: {few}",
    )


def _about_every(
    text: str,
    tasks: Sequence[TaskFigures],
    judged: int,
    word: str,
    exceptions: Sequence[str],
    before: str = "",
    behind: str = "",
) -> Target:
    """Return a target about every task, met where none of those judged is an exception."""
    verdict: Verdict = "missed" if exceptions else "met" if len(tasks) >= PLANNED_TASKS else "open"
    figures = f"{judged - len(exceptions)} of {judged}{before}{_listed(word, exceptions)}{behind}"
    return Target(text, figures, verdict)


def _enough(count: int, planned: int, tasks: Sequence[TaskFigures]) -> Verdict:
    """Return the verdict of a target about some of the tasks; open while tasks to come could still decide it."""
    to_come = max(0, PLANNED_TASKS - len(tasks))
    if to_come and count < planned <= count + to_come:
        return "open"
    return "met" if count >= _share(planned, tasks) else "missed"


def _share(planned: int, tasks: Sequence[TaskFigures]) -> int:
    """Return how many tasks are the same share of those there are, never fewer than planned."""
    return max(planned, ceil(planned * len(tasks) / PLANNED_TASKS))


def _listed(word: str, items: Sequence[str]) -> str:
    return f"; {word}: {', '.join(items)}" if items else ""
