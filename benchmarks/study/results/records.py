"""What is published of the study: four JSON files in one folder, read, merged and written.

    study.json              one record per task, seed and method: the main metrics
    study_comparisons.json  one record per task, method and reference: paired NLL difference with its interval
    study_setup.json        per task: sizes, steps, caps, seeds, hardware, versions; per method: title and family
    study_details.json      what the tables and plots need besides: intervals, reliability bins, costs, recommendations

Floats have 6 significant digits. Every table and plot is made from these files alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from laplora.errors import DataError
from laplora.files import write_whole
from training.config import Section

Reference = Literal["map", "temperature"]
REFERENCES: tuple[Reference, ...] = ("map", "temperature")

#: (bin number of 15, rows, mean confidence, accuracy); empty bins are left out.
Bin = tuple[int, int, float, float]
#: (value, low, high) at 95 %.
Bounds = tuple[float, float, float]


class SetQuality(Section):
    """One kind of prediction sets on the test rows: share that hold the answer, mean size in classes, level asked."""

    coverage: float
    size: float
    nominal: float


class Score(Section):
    """One method on one task and seed; NLL in nats, ECE over 15 bins, AUROC of the method's own score."""

    task: str
    seed: int
    method: str
    nll: float
    ece: float
    accuracy: float
    brier: float
    auroc_error: float | None
    rows: int
    recommended: bool


class Comparison(Section):
    """Mean NLL of a method less that of a reference, pooled over the seeds that have both; below 0: better."""

    task: str
    method: str
    against: Reference
    difference: float
    low: float
    high: float
    seeds: int
    rows: int


class TaskSetup(Section):
    """What all seeds of a task share, and where they ran."""

    digest: str = Field(description="SHA-256 of the sizes, the steps, the configuration and the test rows' labels")
    classes: int | tuple[str, ...]
    train_rows: int
    calibration_rows: int
    rows: int
    steps: int
    configuration: Any = Field(description="what else was set: base model, adapter, optimizer")
    capped: dict[str, Any]
    seeds: tuple[int, ...]
    hardware: tuple[Any, ...]
    versions: tuple[dict[str, Any], ...]


class MethodSetup(Section):
    """How a method is written, and its kind."""

    title: str
    family: str


class Setup(Section):
    """study_setup.json."""

    tasks: dict[str, TaskSetup] = Field({}, description="by name, sorted")
    methods: dict[str, MethodSetup] = Field({}, description="by name, sorted; those that a published task has")


class SeedDetail(Section):
    """What one task and seed recommends and serves, and where it was measured.

    ``review_auroc`` and ``map_entropy_auroc``: how well the chosen review score and the entropy of MAP's probabilities
    rank the mistakes of the recommended method; None where it makes none, or only mistakes.
    """

    task: str
    seed: int
    recommended: str
    reason: str
    review_score: str
    review_auroc: float | None
    map_entropy_auroc: float | None
    conformal: dict[str, dict[str, SetQuality]] = Field({}, description="method -> lac or aps")
    rankings: dict[str, float | None] = Field({}, description="score to choose from -> its AUROC for the same mistakes")
    hardware: Any
    versions: dict[str, Any]
    map_bins: tuple[Bin, ...]
    recommended_bins: tuple[Bin, ...]


class MethodDetail(Section):
    """The rest of one method's scores; ``intervals`` hold (low, high) at 95 % of every metric that has a value."""

    task: str
    seed: int
    method: str
    confidence: float
    auprc_error: float | None
    aurc: float
    intervals: dict[str, tuple[float, float]]
    calibration_nll: float | None
    seconds: float | None
    size_bytes: int | None
    option_orders: int | None = Field(None, description="orders of the options that it averages")


class TaskDetail(Section):
    """What is pooled over the seeds of a task.

    ``gap``: MAP's mean confidence less its accuracy. ``against``: NLL of what each seed recommends less the
    reference's.
    """

    task: str
    seeds: int
    gap: Bounds
    against: dict[Reference, Bounds]


class EnsembleScore(Section):
    """An ensemble over a task's seeds, ``seeds`` of them; ``against_*``: its NLL less the members' mean NLL.

    ``member_nll``, ``member_auroc``, ``against_member``: what each member gives on its own. ``against_laplace``: one
    model with its posterior. ``auroc_error`` is by the entropy of the ensemble's probabilities, ``auroc_disagreement``
    by the mutual information between label and member.
    """

    task: str
    method: str
    seeds: int
    rows: int
    nll: float
    ece: float
    accuracy: float
    brier: float
    auroc_error: float | None
    auroc_disagreement: float | None
    member_nll: float
    member_auroc: float | None
    against_member: Bounds
    against_laplace: Bounds


class Details(Section):
    """study_details.json."""

    tasks: tuple[TaskDetail, ...] = ()
    ensembles: tuple[EnsembleScore, ...] = ()
    seeds: tuple[SeedDetail, ...] = ()
    methods: tuple[MethodDetail, ...] = ()


class Published(Section):
    """All of it, sorted."""

    scores: tuple[Score, ...] = ()
    comparisons: tuple[Comparison, ...] = ()
    setup: Setup = Setup()
    details: Details = Details()


def read_published(folder: Path) -> Published:
    """Return what a folder holds; all of it empty where nothing was published yet.

    Raises:
        DataError: some of the files without the others, or one that is not what this module writes.
    """
    types: dict[str, TypeAdapter[Any]] = {
        "study.json": TypeAdapter(tuple[Score, ...]),
        "study_comparisons.json": TypeAdapter(tuple[Comparison, ...]),
        "study_setup.json": TypeAdapter(Setup),
        "study_details.json": TypeAdapter(Details),
    }
    missing = [name for name in types if not (folder / name).is_file()]
    if len(missing) == len(types):
        return Published()
    if missing:
        raise DataError(f"{folder} holds a part of a published study without {missing}: restore them, or delete it all")
    values = []
    for name, kind in types.items():
        try:
            values.append(kind.validate_json((folder / name).read_bytes()))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise DataError(f"{folder / name}: {where}: {first['msg']}: publish the study again") from None
    scores, comparisons, setup, details = values
    return Published(scores=scores, comparisons=comparisons, setup=setup, details=details)


def write_published(published: Published, folder: Path) -> list[Path]:
    """Write the four files, one record a line, and return their paths; the same content gives the same bytes."""
    details = published.details
    parts = ", ".join(
        f'"{name}": {json_lines(records)}'
        for name, records in (
            ("tasks", details.tasks),
            ("ensembles", details.ensembles),
            ("seeds", details.seeds),
            ("methods", details.methods),
        )
    )
    setup = rounded(published.setup.model_dump(mode="json"))
    texts = {
        "study.json": json_lines(published.scores),
        "study_comparisons.json": json_lines(published.comparisons),
        "study_setup.json": json.dumps(setup, indent=2, ensure_ascii=False, allow_nan=False),
        "study_details.json": f"{{{parts}}}",
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        write_whole(folder / name, text + "\n")
    return [folder / name for name in texts]


def merge(old: Published, new: Published) -> Published:
    """Return what was published with newly scored tasks and seeds in it.

    A task whose digest changed is replaced whole; else its new seeds are added and the same seeds replaced. What is
    pooled over seeds cannot be added up: of two poolings the one over more seeds stays, the newer one where it covers
    every published seed or as many.
    """
    tasks = dict(old.setup.tasks)
    stale = {t for t, setup in new.setup.tasks.items() if t in tasks and tasks[t].digest != setup.digest}
    fresh = {(t, seed) for t, setup in new.setup.tasks.items() for seed in setup.seeds}
    gone = {t for t, setup in new.setup.tasks.items() if t in stale or set(seeds_of(old, t)) <= set(setup.seeds)}

    def kept(record: Any) -> bool:
        return record.task not in stale and (record.task, record.seed) not in fresh

    def pooled(key: Any, before: Sequence[Any], after: Sequence[Any]) -> list[Any]:
        result = {key(r): r for r in before if r.task not in gone}
        result |= {key(r): r for r in after if key(r) not in result or r.seeds >= result[key(r)].seeds}
        return [result[k] for k in sorted(result)]

    scores = sorted([*filter(kept, old.scores), *new.scores], key=_place)
    seeds = sorted([*filter(kept, old.details.seeds), *new.details.seeds], key=lambda r: (r.task, r.seed))
    methods = sorted([*filter(kept, old.details.methods), *new.details.methods], key=_place)
    for task, setup in new.setup.tasks.items():
        of_task = [s for s in seeds if s.task == task]
        capped = setup.capped if task in stale or task not in tasks else tasks[task].capped | setup.capped
        tasks[task] = setup.model_copy(
            update={
                "capped": capped,
                "seeds": tuple(s.seed for s in of_task),
                "hardware": distinct(s.hardware for s in of_task),
                "versions": distinct(s.versions for s in of_task),
            }
        )
    titles, used = {**old.setup.methods, **new.setup.methods}, {s.method for s in scores}
    compared = pooled(lambda r: (r.task, r.method, r.against), old.comparisons, new.comparisons)
    measured = {(s.task, s.method) for s in scores}
    return Published(
        scores=tuple(scores),
        comparisons=tuple(c for c in compared if (c.task, c.method) in measured),
        setup=Setup(
            tasks={t: tasks[t] for t in sorted(tasks)}, methods={m: titles[m] for m in sorted(titles) if m in used}
        ),
        details=Details(
            tasks=tuple(pooled(lambda r: r.task, old.details.tasks, new.details.tasks)),
            ensembles=tuple(pooled(lambda r: (r.task, r.method), old.details.ensembles, new.details.ensembles)),
            seeds=tuple(seeds),
            methods=tuple(methods),
        ),
    )


def seeds_of(published: Published, task: str) -> tuple[int, ...]:
    """Return the published seeds of a task, ascending; none where the task is not published."""
    setup = published.setup.tasks.get(task)
    return setup.seeds if setup else ()


def ordered_methods(published: Published) -> list[str]:
    """Return the methods in the order to show them: MAP, temperature, then by family and name."""
    setup = published.setup.methods
    others = sorted((m for m in setup if m not in REFERENCES), key=lambda m: (setup[m].family, m))
    return [*(r for r in REFERENCES if r in setup), *others]


def distinct(values: Any) -> tuple[Any, ...]:
    """Return JSON values without repetition, in order of their text."""
    found = {json.dumps(v, sort_keys=True): v for v in values}
    return tuple(found[text] for text in sorted(found))


def rounded(value: Any) -> Any:
    """Return a JSON value with every float at 6 significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    return [rounded(v) for v in value] if isinstance(value, list | tuple) else value


def json_lines(records: Sequence[Section]) -> str:
    """Return records as a JSON array, one a line, so that a change of one is a change of one line."""
    if not records:
        return "[]"
    dumped = [rounded(r.model_dump(mode="json")) for r in records]
    return "[\n" + ",\n".join(json.dumps(d, ensure_ascii=False, allow_nan=False) for d in dumped) + "\n]"


def _place(record: Any) -> tuple[str, int, str]:
    return record.task, record.seed, record.method
