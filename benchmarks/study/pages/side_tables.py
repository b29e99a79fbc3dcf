"""The study's tables beside the main ones: prediction sets, ensembles, option orders, and what ranks the mistakes."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from benchmarks.study.pages.markdown import escaped, markdown_table, over_seeds
from benchmarks.study.results.records import Published, Reference
from benchmarks.study.results.targets import coverage_error, outcome, shown

#: Methods whose prediction sets are shown, the recommended one of each seed after them.
_SETS = ("map", "temperature", "laplace")
#: Averages over option orders, with the method of the user's order alone that each is held against.
_ORDERS: tuple[tuple[str, Reference], ...] = (("order_average", "map"), ("order_average_temperature", "temperature"))
#: Seeds under whose models the rule of the recommendation was tuned, on the test rows of all (docs/lab-notes.md).
RULE_SEEDS = (0, 1)
#: Ensembles over seeds, as the table names them.
_SEEDS = {
    "seeds": "{} MAP",
    "seeds_temperature": "{} MAP, one temperature",
    "seeds_laplace": "{} Laplace",
}


def side_tables(published: Published) -> dict[str, str]:
    """Return each of these tables by the name of its markers."""
    return {
        "price": price_table(published),
        "conformal": conformal_table(published),
        "ensembles": ensembles_table(published),
        "orders": orders_table(published),
        "rankings": rankings_table(published),
    }


def price_table(published: Published) -> str:
    """Return the served posterior's NLL against temperature scaling per task, with the accuracy of both.

    The last column is the recommended method's NLL less temperature scaling's, mean over the seeds whose models had no
    part in choosing the recommendation's rule; their test rows, which all seeds share, had.
    """
    scores = {(s.task, s.seed, s.method): s for s in published.scores}
    compared = {c.task: c for c in published.comparisons if (c.method, c.against) == ("laplace", "temperature")}
    names = ", ".join(map(str, RULE_SEEDS))
    title = f"recommended − temperature, without the seeds {names}"
    lines = [["task", "accuracy of MAP", "1 / classes", "Laplace − temperature", "", title]]
    for task, setup in published.setup.tasks.items():
        if task not in compared:
            continue
        found = compared[task]
        untouched = [
            (own.nll - scores[task, own.seed, "temperature"].nll)
            for own in published.scores
            if own.task == task
            and own.recommended
            and own.seed not in RULE_SEEDS
            and (task, own.seed, "temperature") in scores
        ]
        accuracy = _mean([s.accuracy for s in published.scores if (s.task, s.method) == (task, "map")], 3)
        lines.append(
            [
                task,
                accuracy,
                f"{1 / (setup.classes if isinstance(setup.classes, int) else len(setup.classes)):.3f}",
                shown((found.difference, found.low, found.high)),
                outcome(found.low, found.high),
                f"{fmean(untouched):+.3f}" if untouched else "-",
            ]
        )
    return markdown_table(lines, left={0, 4}) if len(lines) > 1 else "No published task has both.\n"


def conformal_table(published: Published) -> str:
    """Return coverage and mean size of both kinds of prediction set, means over seeds, per task and method.

    The last column is what so many calibration rows leave to chance, standard deviation of the coverage.
    """
    lines = [["task", "method", "nominal", "LAC coverage", "LAC size", "APS coverage", "APS size", "by chance"]]
    for task, setup in published.setup.tasks.items():
        seeds = [s for s in published.details.seeds if s.task == task]
        for method in (*_SETS, ""):
            own = [s.conformal[m] for s in seeds if (m := method or s.recommended) in s.conformal]
            if not own:
                continue
            nominal = next(iter(own[0].values())).nominal
            title = "*recommended*" if not method else escaped(published.setup.methods[method].title)
            row = [task, title + (f" ({len(own)})" if len(own) < len(seeds) else ""), f"{nominal:g}"]
            for kind in ("lac", "aps"):
                found = [sets[kind] for sets in own if kind in sets]
                row += [_mean([f.coverage for f in found], 3), _mean([f.size for f in found], 2)]
            lines.append([*row, f"± {coverage_error(nominal, setup.calibration_rows):.3f}"])
    if len(lines) == 1:
        return "No published task has prediction sets.\n"
    return markdown_table(lines, left={0, 1})


def orders_table(published: Published) -> str:
    """Return NLL and accuracy of the averages over option orders beside the same method's in the user's order alone.

    Both are means over the seeds that have both; the difference in NLL is the paired one.
    """
    lines = [["task", "averaged", "passes a row", "NLL", "in one order", "difference", "", "accuracy", "in one order"]]
    scores = {(s.task, s.seed, s.method): s for s in published.scores}
    compared = {(c.task, c.method, c.against): c for c in published.comparisons}
    for task, setup in published.setup.tasks.items():
        for method, reference in _ORDERS:
            both = [s for s in setup.seeds if {(task, s, method), (task, s, reference)} <= scores.keys()]
            if not both:
                continue
            passes = {d.option_orders for d in published.details.methods if (d.task, d.method) == (task, method)}
            pair = [[scores[task, s, m] for s in both] for m in (method, reference)]
            found = compared[task, method, reference]
            title = escaped(published.setup.methods[reference].title)
            lines.append(
                [
                    task,
                    title + (f" ({len(both)})" if len(both) < len(setup.seeds) else ""),
                    " or ".join(str(n) for n in sorted(n for n in passes if n)) or "-",
                    *(_mean([s.nll for s in own], 3) for own in pair),
                    shown((found.difference, found.low, found.high)),
                    outcome(found.low, found.high),
                    *(_mean([s.accuracy for s in own], 3) for own in pair),
                ]
            )
    if len(lines) == 1:
        return "No published task was asked in other orders of its options.\n"
    return markdown_table(lines, left={0, 1, 6})


def ensembles_table(published: Published) -> str:
    """Return NLL, ECE and AUROC of the ensembles over seeds, beside their members and beside one model's Laplace."""
    found = published.details.ensembles
    if not found:
        return "No published task has more than one seed.\n"
    lines = [
        [
            "task",
            "average of",
            "NLL",
            "a member's",
            "one Laplace: difference",
            "",
            "ECE",
            "AUROC",
            "a member's",
            "AUROC by disagreement",
        ]
    ]
    for e in found:
        ranks = ["-" if a is None else f"{a:.3f}" for a in (e.auroc_error, e.member_auroc, e.auroc_disagreement)]
        title = _SEEDS[e.method].format(e.seeds)
        end = outcome(*e.against_laplace[1:])
        numbers = [f"{e.nll:.3f}", f"{e.member_nll:.3f}", shown(e.against_laplace), end, f"{e.ece:.3f}"]
        lines.append([e.task, title, *numbers, *ranks])
    return markdown_table(lines, left={0, 1, 5})


def rankings_table(published: Published) -> str:
    """Return the AUROC of every score to choose from, for the recommended method's mistakes on the test rows.

    Cells are means over seeds; the best as printed is bold where they differ and all seeds have them. *Chosen*: of
    the score that each seed chose on its calibration split, and which that is.
    """
    details = published.details.seeds
    names = list(dict.fromkeys(name for s in details for name in s.rankings))
    if not names:
        return "No published seed measured the scores that it chose from.\n"
    lines = [["task", *(f"`{escaped(n)}`" for n in names), "chosen", "chosen by seed"]]
    for task in published.setup.tasks:
        own = [s for s in details if s.task == task]
        cells = [over_seeds(s.rankings.get(name) for s in own) for name in names]
        whole = {i: round(c.mean, 3) for i, c in enumerate(cells) if c.mean is not None and c.seeds == len(own)}
        best = {i for i, mean in whole.items() if len(set(whole.values())) > 1 and mean == max(whole.values())}
        texts = [f"**{c.text(len(own))}**" if i in best else c.text(len(own)) for i, c in enumerate(cells)]
        chosen = over_seeds(s.rankings.get(s.review_score) for s in own).text(len(own))
        lines.append([task, *texts, chosen, ", ".join(f"{s.seed}: `{escaped(s.review_score)}`" for s in own)])
    return markdown_table(lines, left={0, len(names) + 2})


def _mean(values: Sequence[float], digits: int) -> str:
    return f"{fmean(values):.{digits}f}" if values else "-"
