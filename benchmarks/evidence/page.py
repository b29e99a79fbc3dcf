"""RESULTS.md, made of docs/results/evidence.json alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean

from benchmarks.evidence.cells import Cell
from benchmarks.evidence.methods import METHODS
from benchmarks.evidence.noise import VERDICTS, Value, Verdict, above, has_skill, interval, mean, worse
from benchmarks.evidence.plan import (
    BASES,
    BUDGETS,
    DOUBLED,
    HALVED,
    LABELS,
    REPORTED,
    SEEDS,
    SHIFTED,
    SMALL,
    Training,
    planned,
)
from benchmarks.evidence.scores import REFERENCE, SERVED, TARGETS, Record
from laplora.pool.fine_tuning import LEFT, ROWS_A_LABEL
from training.report.markdown import markdown_table

PAGE = Path(__file__).parent / "RESULTS.md"
#: Departures from the plan, and why: one sentence or more each.
DEPARTURES = [
    "Intervals: the rows' part is the mean of the units' variances, where the plan has that of the joint mean. It is "
    "at most too wide. The seeds' part may be too narrow: seeds are dealt from one data set, and may share rows. Draws "
    "of a seed share two thirds of their labels, so shares of draws have no interval.",
    "The adapter trains for three epochs, at a rate that falls as if there were eight: development tasks were measured "
    "so. If it learns little by then, part of a gain over it is its short training.",
    "Laplace, last-layer Laplace, `served` fine-tuned and all that trains a model beside the adapter are measured on "
    "the first of five draws of each seed.",
    "SetFit and the fine-tuned MiniLM train on nine tenths of all labels, as the adapter of point 4: folds would take "
    "six trainings.",
    "Rivals on adapted states learn from the rows that did not train the adapter, on the last state alone.",
    "Vector scaling is that of probmetrics with a ridge: without it, it diverged on development tasks.",
    "TweetEval's sentiment has no training part here: its rows are the validation and test parts. Tweets lose `@user`.",
    "Frequencies are halved and doubled for the first label alone. Label sets are not measured under shift.",
    "With 1,500 labels draws overlap, since the pool has 1,000 rows.",
    "Methods with a long fit are run after the first figures were published, with the settings that the code had "
    "before. They are paired with a reference that was trained again on the same rows, maybe on another machine.",
    "For their cost, and decided before any of it was seen: arc_challenge has no method with a long fit and no larger "
    "base; of 1,500 labels snips alone is to be run; of cross-fitted adapters, the ensemble and the base of 1.5B the "
    "first seed alone, and one draw of that base.",
    "Thresholds of adapters are set on entropies that are put on the scale of the fit on all rows, those of heads and "
    "rivals on the folds' own, as the product does for each.",
]
#: Titles by method, in the order of the tables; the library's own are bold, and all others are rivals.
TITLES = {name: method.title for name, method in METHODS.items()}
#: The plan's points 3 to 9.
RIVALS = [name for name, title in TITLES.items() if "**" not in title and name != "zero_shot"]
#: The methods of the tables over budgets and bases.
SOME = (
    *("temperature", "map", "structured", "served", "pool_unadapted", "pool", "logistic_mean", "logistic_encoder"),
    *("setfit", "words", "all_labels", "laplace"),
)
#: The methods of the tables of shift.
MOVED = ("temperature", "map", "served", "pool", "logistic_mean", "logistic_encoder", "words")
#: The error among the accepted of the plan's fourth point.
LIMIT = 0.06
_HEAD = """# Answers at a stated error rate, with equal labels

`python -m benchmarks.evidence --publish` makes this page of docs/results/evidence.json. [The plan](PLAN.md) was
written before any result. A user has 450 labels, and SmolLM2-135M-Instruct answers 500 test rows. Figures are means
over three seeds of rows and training, with five draws of calibration rows each, one of methods with a long fit. The
library's are in bold, `served` is its default. The reference is an adapter with temperature scaling. An empty cell was
not measured. A ° marks fewer seeds than the reference has: that figure is of other draws, and no neighbour of it.
"""
_SHORT = """## In short

The plan's points are of `served`, over the tasks with skill: {names}. There MAP or the best rival of the plan's points
5 to 7 is more accurate than the most frequent class of the test rows, beyond noise.

1. **{}.** NLL better than the reference's on at least two thirds of tasks, worse on none: {counts} of {count}.
2. **{}.** NLL at least as good as the best single rival's, within noise, on all tasks but one: the rival is better, has
   no verdict, or some rival was not measured, on {lost} of {count}. The best rival of each task, and how many rivals
   are better than `served` beyond noise: {rivals}.
3. **{}.** Accepted share at 5 % at least 1.5 times the reference's, with a mean error of at most 5.5 %: {share} against
   {of_reference}, with an error of {error}.
4. **{}.** An error above 6 % among the accepted in at most 15 % of draws: in {high}.

Draws in which `served` has a worse NLL than the reference: {chance} ({chances}).
"""
_DIFFERENCES = """## NLL less the reference's, thousandths of a nat

Differences are paired by test row. ± is half the 95 % interval, over seeds and draws (Student's) and test rows. A
method whose interval excludes 0 is better or worse, and its figure is bold; else it is tied. A figure in brackets is of
one seed, which has no verdict.
"""
_ACCEPTED = """## Accepted share, and error among the accepted, per cent

A row is accepted if its entropy is at most a threshold; `served` also sends rows to a person that it flags as unlike
the labelled ones. The product's rule (`empirical`) sets it for every method, on
answers given without the row's own label. Errors, in brackets, are the wrong rows as a share of all accepted ones, over
all draws. The plan's points take the mean over draws. The last columns are shares of draws, per cent, whose error is
above a limit. A draw that accepts no row is within it.
"""
_MEANS = """## Means over tasks

The ECE if perfect is what right probabilities would show: with 500 rows it is not 0. A label of probability 0 has an
NLL of 708 nats. `accepted` is at 5 %. Passes are through a model, for one answer. Seconds are of the fit with its
passes and trainings; an expert alone has those of the whole fit. Methods that some tasks lack come last, below the
reference on the same tasks; those with too few seeds are left out.
"""
_BUDGETS = """## By number of labels

The first columns are the NLL, with its verdict against the reference of the same size. The others are what is accepted
at 5 %, as above. A figure without a verdict has one seed. docs/results/evidence.json has the other methods.

![Share of answers that are accepted against the number of labels](frontier.svg)
"""
_SHIFT = """## Where new rows differ from the labelled ones

Nothing is guaranteed here: a threshold rests on rows like the labelled ones. *Official* tasks are fitted on their data
set's training part (sentiment: its validation part, of earlier years) and tested on its test part. In the last columns
every other test row of the first label is left out, or every other one of the other labels; figures are means over
tasks. Figures are accepted share (error, as above) at 5 %, and of `served` the share that is flagged as unlike the
labelled rows. The official tasks have one seed.
"""
_AUTO = f"""## What `fine_tune: auto` would do

The rule of `laplora.pool.fine_tuning` was chosen on other tasks. It trains an adapter if the heads' NLL on held-out
answers is {LEFT[0]:.0%} to {LEFT[1]:.0%} of the labels' entropy, with {ROWS_A_LABEL} rows a label. The last column is
the NLL of the pool with the adapter less that of `served`, thousandths of a nat; it is bold if its interval excludes 0.
"""
_BASES = "## Larger bases\n\nColumns as above, of the draws that all bases have. Nothing is trained on 1.5B.\n"
#: Headings of the means, with their figures and decimals.
_FIGURES = {
    **{"NLL": ("nll", 3), "accuracy": ("accuracy", 3), "Brier": ("brier", 3), "AURC": ("aurc", 3)},
    **{"ECE": ("ece", 3), "ECE if perfect": ("ece_perfect", 3), "passes": ("forwards", 1), "seconds": ("seconds", 0)},
}
#: A heading, and the text of each method.
Column = tuple[str, Callable[[str], str]]


@dataclass(frozen=True)
class Place:
    """A task, a base and a budget, with the records of each method, and what tables say of one."""

    name: tuple[str, str, int]
    methods: dict[str, list[Record]] = field(default_factory=dict)

    @property
    def cell(self) -> Cell:
        task, name, budget = self.name
        return Cell(Training(task, budget, 0, next(base for base in BASES if base == name)), Path())

    @property
    def title(self) -> str:
        return self.name[0].replace("_", " ")

    def mean(self, method: str, value: Value) -> float | None:
        return mean(self.methods.get(method, ()), value)

    def verdict(self, method: str, other: str = REFERENCE) -> Verdict | None:
        difference = interval(self.methods.get(method, ()), f"vs_{other}")
        return difference.verdict if difference and method != other else None

    def mark(self, method: str) -> str:
        """Return "°" where a method has fewer seeds than the reference."""
        seeds, wanted = ({record["seed"] for record in self.methods.get(one, ())} for one in (method, REFERENCE))
        return "°" if seeds and len(seeds) < len(wanted) else ""

    def nll(self, method: str) -> str:
        return _text(self.mean(method, figure("nll")), 3) + self.mark(method)

    def nll_and_verdict(self, method: str) -> str:
        return f"{self.nll(method)} {self.verdict(method) or ''}".strip()

    def difference(self, method: str, other: str = REFERENCE) -> str:
        difference = interval(self.methods.get(method, ()), f"vs_{other}")
        if difference is None or method == other:
            return ""
        if difference.verdict is None:
            return f"({1000 * difference.mean:+.0f})"
        text = f"{1000 * difference.mean:+.0f}±{1000 * difference.half:.0f}"
        return text if difference.verdict == "tied" else f"**{text}**"


def render(records: Sequence[Record], tasks: Sequence[str] = REPORTED) -> str:
    """Return the page, of the records of these tasks."""
    places = places_of(records)

    def some(*wanted: tuple[str, str, int]) -> list[Place]:
        return [places[name] for name in wanted if name in places]

    main = some(*((task, SMALL, LABELS) for task in tasks))
    parts = [_HEAD, judged(main)[1], "## NLL, nats (lower is better)\n", _table([(one.title, one.nll) for one in main])]
    counts = ", ".join(VERDICTS), partial(_counts, main)
    parts += [_DIFFERENCES, _table([*((one.title, one.difference) for one in main), counts])]
    parts.append(_ACCEPTED)
    for target in TARGETS:
        each: list[Column] = [(one.title, partial(accepted_and_error, [one], target)) for one in main]
        each.append(("mean", partial(accepted_and_error, main, target)))
        limits = sorted({target, LIMIT} if target < LIMIT else {target})
        each += [(f"above {_percent(limit)}", partial(_share, main, above(limit, target))) for limit in limits]
        parts += [f"### At a target error of {_percent(target)}\n", _table(each)]
    parts += [_MEANS, _means(main)]
    sections = {_BUDGETS: [(SMALL, size) for size in BUDGETS], _BASES: [(base, LABELS) for base in BASES]}
    for section, names in sections.items():
        tables = list[str]()
        for task in tasks:
            known = some(*((task, *name) for name in names))
            known = _of_the_same_draws(known) if section is _BASES else known
            of = [(f"{one.name[2]:,}" if section is _BUDGETS else one.name[1], one) for one in known]
            columns: list[Column] = [(name, one.nll_and_verdict) for name, one in of]
            columns += [(name, partial(accepted_and_error, [one], 0.05)) for name, one in of]
            tables += [f"### {task.replace('_', ' ')}\n", _table(columns, SOME)] * (len(of) > 1)
        parts += [section, *tables] if tables else [section.partition("\n")[0], "\nNot measured yet.\n"]
    parts += [_AUTO, _auto([one for one in places.values() if one.name[0] in tasks and one.name[1] == SMALL])]
    parts += [_SHIFT, _shifted(places), "## Fewer seeds or draws than planned\n", _listed(_missing(places))]
    return "\n".join([*parts, "## Departures from the plan\n", _listed(DEPARTURES)])


def _auto(places: Sequence[Place]) -> str:
    """Return a table of what the rule of ``auto`` decides, and what an adapter gains."""
    rows = []
    for place in places:
        budget, classes = place.name[2], len(place.cell.task.labels)
        lefts = [left for record in place.methods.get(SERVED, ()) if (left := record["left"]) is not None]
        if lefts and (difference := place.difference("pool", SERVED)):
            trains = [LEFT[0] <= left <= LEFT[1] and budget >= ROWS_A_LABEL * classes for left in lefts]
            said = f"in {sum(trains)} of {len(trains)} draws"
            rows.append([place.title, f"{budget:,}", _percent(fmean(lefts)), said, difference])
    return markdown_table(
        ["task", "labels", "NLL of the entropy", "trains an adapter", "with the adapter less `served`"], rows
    )


def _of_the_same_draws(places: Sequence[Place]) -> list[Place]:
    draws = [{(r["seed"], r["draw"]) for r in place.methods.get(SERVED, ())} for place in places]
    shared = set.intersection(*draws) if draws else set()
    kept = [{m: [r for r in of if (r["seed"], r["draw"]) in shared] for m, of in p.methods.items()} for p in places]
    return [
        replace(place, methods={m: of for m, of in some.items() if of})
        for place, some in zip(places, kept, strict=True)
    ]


def _shifted(places: Mapping[tuple[str, str, int], Place]) -> str:
    """Return the table of shift; the last row is of flags."""
    moved = {task: [places[name] for name in [(task, SMALL, LABELS)] if name in places] for task in SHIFTED}
    for end in (HALVED, DOUBLED):
        moved[end] = [place for name, place in places.items() if name[0].endswith(end)]
    headings = {HALVED: "first label halved", DOUBLED: "first label doubled"}
    columns: list[Column] = [
        (headings.get(task, task.removesuffix("_official")), partial(accepted_and_error, some, 0.05))
        for task, some in moved.items()
        if some
    ]
    flags = [_share(some, figure("unlike"), SERVED) for some in moved.values() if some]
    return _table(columns, MOVED) + f"| flagged by `served` | {' | '.join(flags)} |\n" if columns else "None yet.\n"


def places_of(records: Sequence[Record]) -> dict[tuple[str, str, int], Place]:
    """Return what has records, by task, base and budget."""
    places: dict[tuple[str, str, int], Place] = {}
    for record in records:
        name = record["task"], record["base"], record["budget"]
        places.setdefault(name, Place(name)).methods.setdefault(record["method"], []).append(record)
    return places


def figure(name: str, target: float = 0.05) -> Value:
    """Return what reads a figure of a record; ``target``: of ``TARGETS``."""
    return lambda record: record[name + TARGETS[target]]


def judged(main: Sequence[Place]) -> tuple[tuple[bool, ...], str]:
    """Return which points of the plan's "What counts as won" are met, in its order, and the section that says so.

    Without a task with skill, nothing is met.
    """
    tasks = [one for one in main if {SERVED, REFERENCE} <= one.methods.keys() and has_skill(one.methods)]
    verdicts, rivals, lost = [one.verdict(SERVED) for one in tasks], list[str](), 0
    for one in tasks:
        absent = [name for name in RIVALS if METHODS[name].planned(one.cell) and name not in one.methods]
        paired = {name: found for name in RIVALS if (found := interval(one.methods.get(name, ()), f"vs_{SERVED}"))}
        best = min(paired, key=lambda name: paired[name].mean, default=None)
        lost += bool(absent) or best is None or paired[best].verdict in (None, "better")
        clearly = sum(found.verdict == "better" for found in paired.values())
        name = "none" if best is None else f"{TITLES[best]} ({paired[best].verdict or 'no verdict'}; {clearly} better)"
        rivals.append(f"{one.title} {name}" + (f", not measured: {', '.join(absent)}" if absent else ""))
    share, of_reference = (over(tasks, name, figure("accepted")) for name in (SERVED, REFERENCE))
    error, high = (over(tasks, SERVED, value) for value in (figure("accepted_error"), above(LIMIT, 0.05)))
    complete = tasks and all({SERVED, REFERENCE} <= one.methods.keys() for one in main)
    won = (
        3 * verdicts.count("better") >= 2 * len(tasks) and "worse" not in verdicts,
        lost <= 1,
        error is not None and (share or 0.0) >= 1.5 * (of_reference or 0.0) and error <= 0.055,
        high is not None and high <= 0.15,
    )
    met = tuple(bool(one and complete) for one in won)
    return met, _SHORT.format(
        *("Met" if one else "Missed" for one in met),
        names=", ".join(one.title for one in tasks) or "none",
        counts=", ".join(f"{name} on {verdicts.count(name)}" for name in VERDICTS),
        count=len(tasks),
        lost=lost,
        rivals="; ".join(rivals) or "none",
        share=_percent(share, 1),
        of_reference=_percent(of_reference, 1),
        error=_percent(error, 2),
        high=_percent(high, 1),
        chance=_percent(over(main, SERVED, worse), 1),
        chances=", ".join(f"{one.title} {_percent(one.mean(SERVED, worse))}" for one in main) or "none",
    )


def _percent(share: float | None, digits: int = 0) -> str:
    return "n/a" if share is None else f"{100 * share:.{digits}f} %"


def over(places: Sequence[Place], method: str, value: Value) -> float | None:
    """Return the mean over tasks of a method's mean; None where no task has it."""
    means = [one for place in places if (one := place.mean(method, value)) is not None]
    return fmean(means) if means else None


def accepted_and_error(places: Sequence[Place], target: float, method: str) -> str:
    """Return the share and the error in brackets, per cent, where all places have the method."""
    if not all(method in place.methods for place in places):
        return ""
    share, wrong = over(places, method, figure("accepted", target)), over(places, method, wrongly(target))
    error = f" ({100 * wrong / share:.1f})" if share and wrong is not None else ""
    mark = max((place.mark(method) for place in places), default="")
    return _share(places, figure("accepted", target), method) + error + mark


def wrongly(target: float = 0.05) -> Value:
    """Return what reads the share of test rows that are accepted and wrong: a draw counts by the rows it accepts."""
    end = TARGETS[target]
    return lambda record: record[f"accepted{end}"] * (record[f"accepted_error{end}"] or 0.0)


def _share(places: Sequence[Place], value: Value, method: str) -> str:
    share = over(places, method, value)
    return "" if share is None else f"{100 * share:.0f}"


def _text(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _counts(places: Sequence[Place], method: str) -> str:
    verdicts = [place.verdict(method) for place in places]
    return ", ".join(str(verdicts.count(one)) for one in VERDICTS) if any(verdicts) else ""


def _means(main: Sequence[Place]) -> str:
    """Return the figures of the methods on all tasks, then of those on fewer, below the reference on the same ones."""
    groups: dict[tuple[int, ...], list[str]] = {}
    for name in TITLES:
        if any(place.mark(name) for place in main):
            continue
        groups.setdefault(tuple(n for n, place in enumerate(main) if name in place.methods), []).append(name)
    groups.pop((), None)
    rows = []
    for numbers, names in sorted(groups.items(), key=lambda group: -len(group[0])):
        places = [main[number] for number in numbers]
        for name in dict.fromkeys((REFERENCE, *names)):
            texts = [_text(over(places, name, figure(key)), digits) for key, digits in _FIGURES.values()]
            rows.append([TITLES[name], len(places), *texts, accepted_and_error(places, 0.05, name)])
    return markdown_table(["", "tasks", *_FIGURES, "accepted"], rows)


def _missing(places: Mapping[tuple[str, str, int], Place]) -> list[str]:
    """Return a line for methods that have fewer seeds or draws in planned places than planned."""
    few: dict[str, list[str]] = {}
    for of in planned(0):
        name = of.task, of.base, of.budget
        place, counts = places.get(name) or Place(name), dict[str, list[str]]()
        for method, how in METHODS.items():
            records = place.methods.get(method, ())
            if how.planned(place.cell) and len(records) < len(SEEDS) * how.draws:
                counts.setdefault(f"{len(records)} of {len(SEEDS) * how.draws}", []).append(TITLES[method])
        for count, methods in counts.items():
            every = len(methods) == sum(how.planned(place.cell) for how in METHODS.values())
            said = f"{'all methods' if every else '; '.join(methods)}: {count} draws"
            few.setdefault(said, []).append(f"{name[0]}, {name[1].removesuffix('-instruct')}, {name[2]:,}")
    return [f"{what}: {'; '.join(names)}." for what, names in few.items()]


def _table(columns: Sequence[Column], methods: Sequence[str] = tuple(TITLES)) -> str:
    """Return a table of methods by columns; methods without any text are left out."""
    rows = [[TITLES[method], *(text(method) for _, text in columns)] for method in methods]
    return markdown_table(["", *(heading for heading, _ in columns)], [row for row in rows if any(row[1:])])


def _listed(lines: Sequence[str]) -> str:
    return "".join(f"- {line}\n" for line in lines or ["None."])
