"""What the study was asked to show, set before it ran, and whether the published figures show it.

Everything is about the *recommended* method: the one that a task's calibration split recommends, seed by seed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Literal

from benchmarks.study.results.records import Bounds, Published, Score

Verdict = Literal["met", "missed", "open"]
Outcome = Literal["win", "tie", "loss"]

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
        map_nll, recommended_nll, map_ece, recommended_ece: means.
        gap: MAP's mean confidence less its accuracy, with its interval.
        against_map, against_temperature: NLL of the recommended less the reference's; None where not measured.
        accuracy_change: accuracy of the recommended less MAP's.
        auroc_lead: AUROC of the chosen review score less that of MAP's entropy, both on the recommended method's
            mistakes; None where no seed has both mistakes and right answers.
        coverage: of the recommended method's LAC sets, and the level that was asked for; None where not measured.
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
    against_map: Bounds | None
    against_temperature: Bounds | None
    accuracy_change: float
    auroc_lead: float | None
    coverage: tuple[float, float] | None

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


def outcome(low: float, high: float) -> Outcome:
    """Return what an interval of an NLL difference says: a win or a loss excludes 0."""
    return "win" if high < 0 else "loss" if low > 0 else "tie"


def task_figures(published: Published) -> tuple[TaskFigures, ...]:
    """Return the figures of every published task, in the order of their names."""
    result = []
    for detail in published.details.tasks:
        own = [s for s in published.scores if s.task == detail.task]
        base, best = [s for s in own if s.method == "map"], [s for s in own if s.recommended]
        seeds = [s for s in published.details.seeds if s.task == detail.task]
        leads = [
            s.review_auroc - s.map_entropy_auroc
            for s in seeds
            if s.review_auroc is not None and s.map_entropy_auroc is not None
        ]
        sets = [s.conformal[s.recommended]["lac"] for s in seeds if "lac" in s.conformal.get(s.recommended, {})]
        result.append(
            TaskFigures(
                task=detail.task,
                rows=own[0].rows,
                calibration_rows=published.setup.tasks[detail.task].calibration_rows,
                seeds=len(base),
                recommended=tuple(s.method for s in best),
                map_nll=_mean(base, lambda s: s.nll),
                recommended_nll=_mean(best, lambda s: s.nll),
                map_ece=_mean(base, lambda s: s.ece),
                recommended_ece=_mean(best, lambda s: s.ece),
                gap=detail.gap,
                against_map=detail.against.get("map"),
                against_temperature=detail.against.get("temperature"),
                accuracy_change=_mean(best, lambda s: s.accuracy) - _mean(base, lambda s: s.accuracy),
                auroc_lead=sum(leads) / len(leads) if leads else None,
                coverage=(sum(s.coverage for s in sets) / len(sets), sets[0].nominal) if sets else None,
            )
        )
    return tuple(result)


def judge(tasks: Sequence[TaskFigures]) -> tuple[Target, ...]:
    """Return every target with its figures and verdict; what was missed stays in."""
    return (*_nll_targets(tasks), *_other_targets(tasks), _coverage_target(tasks))


def shown(bounds: Bounds) -> str:
    """Return "-0.376 [-0.431, -0.324]"."""
    value, low, high = bounds
    return f"{value:+.3f} [{low:+.3f}, {high:+.3f}]"


def _nll_targets(tasks: Sequence[TaskFigures]) -> list[Target]:
    over = [(t.task, t.against_map) for t in tasks if t.overconfident and t.against_map]
    not_won = [f"{task} {shown(b)}" for task, b in over if outcome(b[1], b[2]) != "win"]
    worse = [
        f"{t.task} {shown(t.against_map)}"
        for t in tasks
        if t.against_map and outcome(t.against_map[1], t.against_map[2]) == "loss"
    ]
    versus = {t.task: t.against_temperature for t in tasks if t.against_temperature}
    ends = {task: outcome(b[1], b[2]) for task, b in versus.items()}
    lost = [f"{task} {shown(versus[task])}" for task, end in ends.items() if end == "loss"]
    wins, ties = (sum(end == kind for end in ends.values()) for kind in ("win", "tie"))
    return [
        Target(
            f"NLL below MAP's, beyond noise, wherever MAP is overconfident (ECE above {ECE_LIMIT}, or mean confidence "
            "above accuracy beyond noise)",
            f"{len(over) - len(not_won)} of {len(over)}{_listed('not won', not_won)}",
            _every(not_won, tasks),
        ),
        Target(
            "NLL never above MAP's beyond noise",
            f"{len(tasks) - len(worse)} of {len(tasks)}{_listed('worse', worse)}",
            _every(worse, tasks),
        ),
        Target(
            f"NLL beats or ties temperature scaling on at least {_share(6, tasks)} tasks (6 of 8)",
            f"{wins} won, {ties} tied, {len(lost)} lost{_listed('lost', lost)}",
            _enough(wins + ties, 6, tasks),
        ),
    ]


def _other_targets(tasks: Sequence[TaskFigures]) -> list[Target]:
    large = [t for t in tasks if t.rows >= ECE_ROWS]
    miscalibrated = [f"{t.task} {t.recommended_ece:.3f}" for t in large if t.recommended_ece > ECE_LIMIT]
    largest = f"; largest {max(t.recommended_ece for t in large):.3f}" if large else ""
    less_accurate = [f"{t.task} {100 * t.accuracy_change:+.1f}" for t in tasks if t.accuracy_change < -ACCURACY_MARGIN]
    leads = [(t.task, t.auroc_lead) for t in tasks if t.auroc_lead is not None]
    behind = [f"{task} {lead:+.3f}" for task, lead in leads if lead < -AUROC_MARGIN]
    ahead = [f"{task} {lead:+.3f}" for task, lead in leads if lead >= AUROC_LEAD]
    return [
        Target(
            f"ECE at most {ECE_LIMIT} on every task with {ECE_ROWS} or more test rows",
            f"{len(large) - len(miscalibrated)} of {len(large)}{largest}{_listed('above', miscalibrated)}",
            _every(miscalibrated, tasks),
        ),
        Target(
            f"accuracy at most {100 * ACCURACY_MARGIN:.1f} points below MAP's",
            f"{len(tasks) - len(less_accurate)} of {len(tasks)}{_listed('below', less_accurate)}",
            _every(less_accurate, tasks),
        ),
        Target(
            f"the review score's AUROC never more than {AUROC_MARGIN} behind MAP's entropy",
            f"{len(leads) - len(behind)} of {len(leads)}{_listed('behind', behind)}",
            _every(behind, tasks),
        ),
        Target(
            f"the review score's AUROC at least {AUROC_LEAD} ahead on at least {_share(3, tasks)} tasks (3 of 8)",
            f"{len(ahead)} of {len(leads)}{_listed('ahead', ahead)}",
            _enough(len(ahead), 3, tasks),
        ),
    ]


def _coverage_target(tasks: Sequence[TaskFigures]) -> Target:
    found = [(t, *t.coverage, coverage_error(t.coverage[1], t.calibration_rows)) for t in tasks if t.coverage]
    # the files hold 6 digits, so a difference of the margin itself can come out a rounding above it
    far = [f"{t.task} {c:.3f} ± {e:.3f}" for t, c, level, e in found if round(abs(c - level), 6) > COVERAGE_MARGIN]
    errors = [f"{100 * e:.1f} points ({n} rows)" for e, n in sorted({(e, t.calibration_rows) for t, *_, e in found})]
    few = " to ".join(dict.fromkeys([*errors[:1], *errors[-1:]]))
    noise = f"; standard deviation that the calibration rows allow: {few}" if errors else ""
    levels = " or ".join(f"{100 * level:g} %" for level in dict.fromkeys(level for _, _, level, _ in found))
    return Target(
        f"conformal coverage within {100 * COVERAGE_MARGIN:g} points of the nominal{levels and f' {levels}'} "
        "(LAC sets of the recommended method)",
        f"{len(found) - len(far)} of {len(found)}{_listed('off', far)}{noise}",
        _every(far, [t for t, *_ in found]),
    )


def _mean(scores: Sequence[Score], value: Callable[[Score], float]) -> float:
    return sum(value(s) for s in scores) / len(scores)


def _every(exceptions: Sequence[str], tasks: Sequence[TaskFigures]) -> Verdict:
    """Return the verdict of a target about every task."""
    if exceptions:
        return "missed"
    return "met" if len(tasks) >= PLANNED_TASKS else "open"


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
