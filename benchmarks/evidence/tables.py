"""The tables of RESULTS.md, from the decision's cells alone."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.evidence.decision import Cell, reported, tally
from benchmarks.evidence.methods import METHODS, REFERENCE, RETRAINED
from benchmarks.evidence.plan import BUDGETS, DEVELOPING, REPORTED, SEEDS, STYLES
from benchmarks.evidence.recovered import CONDITIONED, Recovered
from benchmarks.evidence.reviewed import Reviewed
from training.report.markdown import markdown_table

#: Of a smaller gain by retraining no share is given, nats.
_LEAST_GAIN = 0.01


def overview(every: Sequence[Cell], budgets: Sequence[int]) -> str:
    """Return by method its price, and at each budget the tasks won, tied and lost with the mean difference."""
    chosen = {budget: list(reported(every, budget)) for budget in budgets}
    lines = []
    for name in methods_of([cell for of in chosen.values() for cell in of]):
        line = [METHODS[name].title, _range({c.forwards for of in chosen.values() for c in of if c.method == name})]
        for of in chosen.values():
            gains = [c.differences["nll"].mean for c in of if c.method == name]
            line.append(f"{_verdicts(of, name, 'nll')}, {_signed(gains)}" if gains else "-")
        lines.append(line)
    return markdown_table(["method", "cost", *(f"{budget} labels" for budget in chosen)], lines)


def in_words(every: Sequence[Cell], budgets: Sequence[int], names: Sequence[str]) -> str:
    """Return by method and budget on which tasks it is better than temperature scaling, level, worse, or open."""
    lines = []
    for name in names:
        said = []
        for budget in budgets:
            of = [cell for cell in reported(every, budget) if cell.method == name]
            if of:
                found = tally(of, name, "nll")
                groups = (("better", found.wins), ("level", found.ties), ("worse", found.losses), ("open", found.open))
                verdicts = "; ".join(f"{word} on {', '.join(tasks)}" for word, tasks in groups if tasks)
                accuracy = 100 * _mean([cell.more_accurate for cell in of])
                said.append(f"{budget} labels: {verdicts}; accuracy {accuracy:+.1f} points in the mean")
        if said:
            price = _range({c.forwards for c in every if c.method == name and not c.developing})
            passes = "pass" if price == "1" else "passes"
            lines.append(f"- **{METHODS[name].title}**, {price} forward {passes}. " + ". ".join(said) + ".")
    return "\n".join(lines)


def worth(every: Sequence[Cell], method: str) -> str:
    """Return by task what temperature scaling and a method have, for readers who meet none of the others."""
    by = {(c.budget, c.task, c.method): c for c in every if not c.developing}
    lines = []
    for budget, task in sorted(
        {place[:2] for place in by if place[2] == method}, key=lambda p: (p[0], REPORTED.index(p[1]))
    ):
        cell, plain = by[budget, task, method], by[budget, task, REFERENCE]
        figures = [f"{c.values['nll']:.3f}, {100 * c.values['accuracy']:.1f} %" for c in (plain, cell)]
        verdict = {"win": "better", "tie": "level", "loss": "worse", "open": "open"}[cell.differences["nll"].verdict]
        gain = cell.differences["nll"]
        lines.append(
            [_described(task, cell), *figures, f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})", verdict]
        )
    heading = ["task, labels", "temperature: NLL, accuracy", "conditioned", "difference in NLL", "verdict"]
    return markdown_table(heading, lines)


def _described(task: str, cell: Cell) -> str:
    seeds = "" if cell.seeds >= len(SEEDS) else f", {cell.seeds} of {len(SEEDS)} trainings"
    return f"{task}, {cell.budget}{seeds}" + ("" if cell.skill else " (no skill)")


def winners(every: Sequence[Cell], budgets: Sequence[int]) -> str:
    """Return what a method that won in NLL and lost nowhere has in all three targets; empty where there is none."""
    lines = []
    for budget in budgets:
        chosen = list(reported(every, budget))
        for name in methods_of(chosen):
            of = [cell for cell in chosen if cell.method == name]
            nll, aurc = tally(of, name, "nll"), tally(of, name, "aurc")
            if nll.wins and not nll.losses:
                worst = max(cell.values["ece"] for cell in of)
                figures = [f"{len(one.wins)} / {len(one.losses)} of {len(of)}" for one in (nll, aurc)]
                lines.append([f"{budget}", METHODS[name].title, *figures, f"{worst:.3f}"])
    heading = ["labels", "method", "NLL: won / lost", "AURC: won / lost", "largest ECE"]
    return markdown_table(heading, lines, left=(1,)) if lines else ""


def by_method(of: Sequence[Cell]) -> str:
    """Return every method's verdicts and means over the tasks of one budget."""
    lines = []
    for name in methods_of(of):
        own = [cell for cell in of if cell.method == name]
        means = {
            metric: _mean([cell.values[metric] for cell in own]) for metric in ("ece", "ece_calibrated", "accuracy")
        }
        lines.append(
            [
                METHODS[name].title,
                _range({cell.forwards for cell in own}),
                _verdicts(of, name, "nll"),
                *(_signed([c.by_style[style] for c in own if style in c.by_style]) for style in STYLES),
                _verdicts(of, name, "aurc"),
                f"{1000 * _mean([c.differences['aurc'].mean for c in own]):+.2f}",
                f"{means['ece']:.3f} ({means['ece_calibrated']:.3f})",
                f"{means['accuracy']:.3f}",
            ]
        )
    styles = [f"mean, {style}" for style in STYLES]
    heading = ["method", "cost", "NLL", *styles, "AURC", "mean, 1/1000", "ECE (calibrated)", "accuracy"]
    return markdown_table(heading, lines)


def by_task(of: Sequence[Cell], *, budgets: bool = False) -> str:
    """Return every method's difference in NLL, a column a task, or a task and budget."""
    by = {(c.budget, c.task, c.method): c for c in of}
    order = (*DEVELOPING, *REPORTED)
    columns = sorted({(c.budget, c.task) for c in of}, key=lambda place: (place[0], order.index(place[1])))
    lines = []
    for name in methods_of(of):
        found = [by.get((*place, name)) for place in columns]
        shown = (
            "-" if c is None else _shown(c, by[(*place, REFERENCE)]) for c, place in zip(found, columns, strict=True)
        )
        lines.append([METHODS[name].title, *shown])
    heads = [named(by[(*place, REFERENCE)]) + (f", {place[0]}" if budgets else "") for place in columns]
    return markdown_table(["method", *heads], lines)


def before(of: Sequence[Cell]) -> str:
    """Return what MAP and temperature scaling have on each task of one budget."""
    lines = []
    for cell in sorted((c for c in of if c.method == REFERENCE), key=lambda c: REPORTED.index(c.task)):
        plain = next(c for c in of if (c.task, c.method) == (cell.task, "map"))
        figures = [f"{c.values[metric]:.3f}" for metric in ("nll", "ece") for c in (plain, cell)]
        lines.append([named(cell), f"{plain.values['accuracy']:.3f}", *figures, f"{cell.values['ece_calibrated']:.3f}"])
    heading = ["task", "accuracy", "NLL, MAP", "temperature", "ECE, MAP", "temperature", "calibrated"]
    return markdown_table(heading, lines)


def recovered_shares(of: Sequence[Recovered]) -> str:
    """Return what retraining on the calibration labels gains on each task, and how much of it conditioning does."""
    lines = []
    for one in sorted(of, key=lambda r: (r.budget, (*DEVELOPING, *REPORTED).index(r.task))):
        gain = one.gain(RETRAINED)
        line = [f"{one.task}, {one.budget}", f"{one.seeds}", f"{one.nll[REFERENCE]:.3f}", f"{gain:+.3f}"]
        for name in CONDITIONED:
            share = f" ({one.gain(name) / gain:.0%})" if name in one.nll and gain >= _LEAST_GAIN else ""
            line.append(f"{one.gain(name):+.3f}{share}" if name in one.nll else "-")
        points = (one.accuracy[name] - one.accuracy[REFERENCE] for name in (CONDITIONED[0], RETRAINED))
        lines.append([*line, " / ".join(f"{100 * p:+.1f}" for p in points)])
    titles = [METHODS[name].title for name in CONDITIONED]
    heading = [
        "task, labels",
        "seeds",
        "temperature",
        "retrained",
        *titles,
        "accuracy, points: conditioned / retrained",
    ]
    return markdown_table(heading, lines)


def review_scores(of: Sequence[Reviewed]) -> str:
    """Return by task each score's AURC less the entropy's, with its interval and prediction-rejection ratio."""
    order = (*DEVELOPING, *REPORTED)
    names = [name for name in METHODS if any(one.method == name for one in of)]
    lines = []
    for budget, task in sorted({(o.budget, o.task) for o in of}, key=lambda p: (p[0], order.index(p[1]))):
        found = {one.method: one for one in of if (one.budget, one.task) == (budget, task)}
        first = next(iter(found.values()))
        line = [f"{task}, {budget}", f"{first.seeds}", f"{first.entropy:.3f}"]
        lines.append([*line, *(_ranked(found[name]) if name in found else "-" for name in names)])
    return markdown_table(["task, labels", "seeds", "PRR of entropy", *(METHODS[n].title for n in names)], lines)


def _ranked(one: Reviewed) -> str:
    mean, low, high = (1000 * value for value in (one.difference.mean, one.difference.low, one.difference.high))
    text = f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"
    return (text if one.difference.verdict in ("tie", "open") else f"**{text}**") + f", PRR {one.prr:.3f}"


def finished(every: Sequence[Cell]) -> str:
    """Return how many trained models there are of each task and budget."""
    done = {(c.task, c.budget): c.units for c in every if c.method == REFERENCE}
    wanted = len(SEEDS) * len(STYLES)
    lines = [
        [task, *(f"{done.get((task, budget), 0)} of {wanted}" for budget in sorted(BUDGETS))]
        for task in (*DEVELOPING, *REPORTED)
    ]
    return markdown_table(["task", *(f"{budget} labels" for budget in sorted(BUDGETS))], lines)


def methods_of(of: Sequence[Cell]) -> list[str]:
    """Return the methods of some cells that have the reference's labels, but the reference, in their order."""
    have = {cell.method for cell in of if METHODS[cell.method].reviews is None}
    return [name for name in METHODS if name in have and name not in (REFERENCE, RETRAINED)]


def named(cell: Cell) -> str:
    """Return a cell's task, with its seeds where some are missing."""
    return cell.task if cell.seeds >= len(SEEDS) else f"{cell.task} ({cell.seeds} of {len(SEEDS)} seeds)"


def _verdicts(of: Sequence[Cell], method: str, metric: str) -> str:
    found = tally(of, method, metric)
    text = f"{len(found.wins)} / {len(found.ties)} / {len(found.losses)}"
    return f"{text} ({len(found.open)} open)" if found.open else text


def _shown(cell: Cell, reference: Cell) -> str:
    """Return a difference, with its seeds where they are fewer than its column's."""
    found = cell.differences["nll"]
    text = f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"
    text = text if found.verdict in ("tie", "open") else f"**{text}**"
    return text if cell.seeds == reference.seeds else f"{text}, {cell.seeds} of {reference.seeds} seeds"


def _signed(values: Sequence[float]) -> str:
    return f"{_mean(values):+.4f}" if values else "-"


def _range(values: set[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:.0f}" if low == high else f"{low:.0f} to {high:.0f}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
