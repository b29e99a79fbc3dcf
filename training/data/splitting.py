"""Disjoint, seeded, deduplicated splits out of pools of examples, and checks that cost nothing before a long job."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from laplora.data.labelled import Task
from laplora.errors import DataError
from laplora.fitting.rows import FEW_CALIBRATION_ROWS
from laplora.prompts.examples import Example
from laplora.prompts.groups import row_groups
from training.data.examples import ROLES, Pool, Role, Source, Splits

#: Fewer calibration rows are said before training: a threshold for a few percent of errors rests on a handful of them.
ENOUGH_CALIBRATION_ROWS = 100
#: How splits share the rows of one pool where the config leaves several of their sizes open.
SHARES: dict[Role, int] = {"train": 4, "calibration": 1, "test": 2}

Dropped = dict[str, dict[str, int]]


def split(
    source: Source,
    counts: Mapping[Role, int | None],
    *,
    seed: int,
    train_seed: int | None = None,
    hold_out: bool = True,
    stratify: bool = False,
) -> Splits:
    """Return the splits of a source.

    Duplicates go first, over all pools; then each pool is shuffled and cut, test first, between two groups. So with the
    same seed the test rows stay the same when only the number of training rows changes.

    Args:
        counts: rows wanted per split; None is what the others leave, shared by ``SHARES``.
        train_seed: draws the training rows from all that the other splits leave; None: from ``seed``, as the others.
        hold_out: whether calibration rows are kept apart; else they follow the training rows, as such.
        stratify: whether each split of a pool has the labels in the pool's proportion, to about a row.

    Raises:
        DataError: more rows wanted than there are, fewer training rows than classes, or only one class.
    """
    task = source.task
    pools, dropped = drop_duplicates(source)
    splits: dict[Role, tuple[Example, ...]] = {}
    for pool in pools:
        sizes = _sizes(pool, counts, dropped[pool.name])
        shuffled = list(pool.examples)
        random.Random(seed).shuffle(shuffled)
        shuffled = gathered(interleaved(shuffled) if stratify else shuffled)
        start = 0
        for role in (r for r in ROLES if r in pool.roles):
            if role == "train" and train_seed is not None:
                rest = random.Random(train_seed).sample(shuffled[start:], len(shuffled) - start)
                shuffled[start:] = gathered(interleaved(rest) if stratify else rest)
            end = _whole(shuffled, start + sizes[role])
            splits[role] = tuple(shuffled[start:end])
            start = end
    if not hold_out:
        splits |= {"train": splits["train"] + splits["calibration"], "calibration": ()}
    ordered = {role: splits[role] for role in SHARES}
    report = {
        "dataset": task.name,
        "source": source.kind,
        "source_detail": source.detail,
        "seed": seed,
        "train_seed": seed if train_seed is None else train_seed,
        "available": {pool.name: len(pool.examples) for pool in source.pools},
        "duplicates_dropped": dropped,
        "rows": {role: len(rows) for role, rows in ordered.items()},
        "classes": {role: class_counts(task, rows) for role, rows in ordered.items()},
        "warnings": [*source.warnings, *check(task, splits, hold_out=hold_out), *_repeats(dropped)],
    }
    return Splits(task, splits["train"], splits["calibration"], splits["test"], report)


def interleaved(examples: Sequence[Example]) -> list[Example]:
    """Return rows in an order of which each stretch has their labels in proportion, to about a row.

    The k-th row of a label with n goes to (k + 1/2) / n of the whole. Rows of one label keep their order.
    """
    of_label, seen = Counter(e.label for e in examples), Counter[int]()
    placed = []
    for example in examples:
        placed.append(((seen[example.label] + 0.5) / of_label[example.label], example))
        seen[example.label] += 1
    return [example for _, example in sorted(placed, key=lambda one: one[0])]


def gathered(examples: Sequence[Example]) -> list[Example]:
    """Return rows in their order, but those of a group where its first row is."""
    first: dict[str, int] = {}
    places = [n if e.group is None else first.setdefault(e.group, n) for n, e in enumerate(examples)]
    return [examples[n] for n in sorted(range(len(examples)), key=places.__getitem__)]


def _whole(examples: Sequence[Example], end: int) -> int:
    """Return the next place, from ``end`` on, that is between two groups of gathered rows."""
    while (
        0 < end < len(examples) and examples[end].group is not None and examples[end].group == examples[end - 1].group
    ):
        end += 1
    return end


def with_selection(splits: Splits, fraction: float) -> Splits:
    """Return the splits with a share of the training rows, the last ones, two at least, as the selection rows.

    The training rows come in a random order, so these are a random draw.

    Raises:
        DataError: too few training rows are left.
    """
    count = max(2, round(fraction * len(splits.train)))
    start = _whole(splits.train, max(0, len(splits.train) - count))
    left, selection = splits.train[:start], splits.train[start:]
    given: dict[Role, tuple[Example, ...]] = {
        "train": left,
        "calibration": splits.calibration,
        "test": splits.test,
    }
    warnings = check(splits.task, given, hold_out=bool(splits.calibration))
    report = splits.report | {
        "rows": splits.report["rows"] | {"train": len(left), "selection": len(selection)},
        "classes": splits.report["classes"]
        | {"train": class_counts(splits.task, left), "selection": class_counts(splits.task, selection)},
        "warnings": list(dict.fromkeys([*splits.report["warnings"], *warnings])),
    }
    return replace(splits, train=left, selection=selection, report=report)


def without_long_prompts(source: Source, max_characters: int) -> Source:
    """Return the source without the rows whose prompt is longer; DataError where a pool has no other."""
    pools, dropped = [], 0
    for pool in source.pools:
        short = tuple(e for e in pool.examples if len(source.task.prompt(e)) <= max_characters)
        if not short:
            raise DataError(f"{pool.name}: no prompt has {max_characters} characters or fewer: raise the limit")
        dropped += len(pool.examples) - len(short)
        pools.append(replace(pool, examples=short))
    detail = f"{source.detail}; {dropped} rows with prompts over {max_characters} characters left out"
    return replace(source, pools=tuple(pools), detail=detail)


def drop_duplicates(source: Source) -> tuple[list[Pool], Dropped]:
    """Return the pools without repeated questions, or rows of another pool's group, and what was dropped by pool.

    The first one stays, where test comes before calibration and calibration before train.
    """
    owner: dict[str, tuple[str, int]] = {}  # question -> (pool, label) of the one that stays
    home: dict[str, str] = {}  # group -> pool
    kept: dict[str, Pool] = {}
    dropped: Dropped = {pool.name: {"within": 0, "across": 0, "conflicting_labels": 0} for pool in source.pools}
    for pool in sorted(_linked(source), key=lambda p: min(ROLES.index(r) for r in p.roles)):
        count = dropped[pool.name]
        rows = []
        for example in pool.examples:
            question = source.task.question(example)
            if question not in owner:
                if example.group is not None and home.setdefault(example.group, pool.name) != pool.name:
                    count["across"] += 1
                    continue
                owner[question] = (pool.name, example.label)
                rows.append(example)
                continue
            first_pool, first_label = owner[question]
            count["within" if first_pool == pool.name else "across"] += 1
            count["conflicting_labels"] += first_label != example.label
        kept[pool.name] = replace(pool, examples=tuple(rows))
    return [kept[pool.name] for pool in source.pools], dropped


def _linked(source: Source) -> list[Pool]:
    """Return the pools with groups that are linked by equal questions, in any pool, as one."""
    examples = [example for pool in source.pools for example in pool.examples]
    if all(example.group is None for example in examples):
        return list(source.pools)
    numbers = iter(row_groups(source.task.template, source.task.labels, examples).tolist())
    return [
        replace(pool, examples=tuple(replace(example, group=str(next(numbers))) for example in pool.examples))
        for pool in source.pools
    ]


def check(task: Task, splits: Mapping[Role, tuple[Example, ...]], *, hold_out: bool = True) -> list[str]:
    """Return warnings about splits that can be used, but not for everything; DataError where nothing is learned."""
    train, calibration = splits["train"], splits["calibration"]
    if len(train) < len(task.labels):
        raise DataError(
            f"{task.name}: {len(train)} training rows are fewer than the {len(task.labels)} classes: add rows, or "
            "ask for fewer calibration and test rows"
        )
    present = {e.label for e in train}
    if len(present) == 1:
        raise DataError(
            f"{task.name}: every training row has the label {task.labels[min(present)]!r}, there is nothing to learn: "
            "check the label field, and that the file is not cut off"
        )
    warnings = [
        f"no training row has the label {label!r}: the model is never taught it, and what it says about "
        "that label is the base model's guess"
        for index, label in enumerate(task.labels)
        if index not in present
    ]
    for role in ("calibration", "test"):
        if unseen := sorted({task.labels[e.label] for e in splits[role] if e.label not in present}):
            warnings.append(f"the {role} split holds labels that no training row has: {unseen}")
    if not hold_out:
        calibration = train
    if not calibration:
        warnings.append(
            "no calibration rows: the prior cannot be chosen by validation, and no temperature, threshold or "
            "prediction set can be fitted"
        )
    elif len(calibration) < FEW_CALIBRATION_ROWS:
        warnings.append(
            f"{len(calibration)} calibration rows are fewer than {FEW_CALIBRATION_ROWS}: the prior precision, the "
            "temperature and the thresholds chosen on them are mostly noise"
        )
    elif len(calibration) < ENOUGH_CALIBRATION_ROWS:
        warnings.append(
            f"{len(calibration)} calibration rows are fewer than {ENOUGH_CALIBRATION_ROWS}: thresholds for a stated "
            "error rate rest on a handful of mistakes"
        )
    if hold_out and len(train) < len(calibration):
        warnings.append(
            f"{len(train)} training rows are fewer than the {len(calibration)} calibration rows: leave "
            "data.calibration and data.test out, and the rows are shared 4:1:2"
        )
    seen = {e.label for e in calibration}
    if len(seen) == 1:
        warnings.append(
            f"every calibration row has the label {task.labels[min(seen)]!r}: temperatures, thresholds and "
            "prediction sets fitted on them say nothing about the other labels"
        )
    elif seen and (unseen := [task.labels[i] for i in sorted(present - seen)]):
        warnings.append(
            f"no calibration row has the labels {unseen}: coverage and risk as promised do not hold for "
            "rows of these labels"
        )
    if not splits["test"]:
        warnings.append("no test rows: nothing can be measured on unseen data")
    return warnings


def _sizes(pool: Pool, counts: Mapping[Role, int | None], dropped: Mapping[str, int]) -> dict[Role, int]:
    """Return how many rows each of a pool's splits takes."""
    available = len(pool.examples)
    sizes = {role: n for role in pool.roles if (n := counts[role]) is not None}
    left_open = [role for role in ROLES if role in pool.roles and role not in sizes]
    rest = available - sum(sizes.values())
    if rest < len(left_open):
        wanted = " + ".join(f"{role} {sizes.get(role, 'at least 1')}" for role in pool.roles)
        gone = dropped["within"] + dropped["across"]
        after = f" (after {gone} duplicates were dropped)" if gone else ""
        raise DataError(f"{pool.name}: {wanted} rows asked for, {available} are there{after}: ask for fewer")
    if len(left_open) == 1:
        most = pool.default_rows if len(pool.roles) == 1 else None
        sizes[left_open[0]] = rest if most is None else min(rest, most)
    elif left_open:
        total = sum(SHARES[role] for role in left_open)
        for role in left_open[:-1]:
            sizes[role] = max(1, rest * SHARES[role] // total)
        sizes[left_open[-1]] = available - sum(sizes.values())
    return sizes


def _repeats(dropped: Dropped) -> list[str]:
    """Return a warning for each pool that repeats rows of another one, or its rows with other labels."""
    across = [
        f"{name}: {count['across']} rows repeat rows of another split's file, or are of its groups, and are left out "
        "here, so that nothing is measured on a row that was trained on; a file with many of them was not split cleanly"
        for name, count in dropped.items()
        if count["across"]
    ]
    conflicting = [
        f"{name}: {count['conflicting_labels']} rows repeat another row's prompt with another label: the first one "
        "stays, check which is right"
        for name, count in dropped.items()
        if count["conflicting_labels"]
    ]
    return across + conflicting


def class_counts(task: Task, rows: Sequence[Example]) -> dict[str, int]:
    """Return how many rows each label has, by its name."""
    present = Counter(e.label for e in rows)
    return {label: present[index] for index, label in enumerate(task.labels)}
