"""Disjoint, seeded, deduplicated splits out of pools of examples, and checks that cost nothing before a long job."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from laplora.errors import DataError
from laplora.prompts.templates import render
from training.data.examples import ROLES, Example, Pool, Role, Source, Splits, Task

#: How splits share the rows of one pool where the config leaves several of their sizes open.
SHARES: dict[Role, int] = {"train": 4, "calibration": 1, "test": 2}
#: Below this, a prior or threshold chosen on the calibration split is mostly noise.
FEW_CALIBRATION_ROWS = 20


def split(source: Source, counts: Mapping[Role, int | None], *, seed: int, train_seed: int | None = None) -> Splits:
    """Return the splits of a source.

    Duplicates go first, over all pools; then each pool is shuffled and cut, test first. So with the
    same seed the test rows stay the same when only the number of training rows changes.

    Args:
        source: pools in which each role appears once.
        counts: rows wanted per split; None is what the others leave (several None share it 4:1:2 as
            train, calibration, test).
        seed: of the shuffles; the result depends on nothing else.
        train_seed: draws the training rows from all that the other splits leave, in another order, so that
            runs can differ in their training rows and share the others; None: from ``seed``, as the others.

    Raises:
        DataError: more rows wanted than there are, fewer training rows than classes, or only one class.
    """
    pools, dropped = drop_duplicates(source)
    splits: dict[Role, tuple[Example, ...]] = {}
    for pool in pools:
        sizes = _sizes(pool, counts, dropped[pool.name])
        shuffled = list(pool.examples)
        random.Random(seed).shuffle(shuffled)
        start = 0
        for role in (r for r in ROLES if r in pool.roles):
            if role == "train" and train_seed is not None:
                shuffled[start:] = random.Random(train_seed).sample(shuffled[start:], len(shuffled) - start)
            splits[role] = tuple(shuffled[start : start + sizes[role]])
            start += sizes[role]
    train, calibration, test = splits["train"], splits["calibration"], splits["test"]
    classes = {role: _class_counts(source.task, splits[role]) for role in ("train", "calibration", "test")}
    report: dict[str, Any] = {
        "dataset": source.task.name,
        "source": source.kind,
        "source_detail": source.detail,
        "seed": seed,
        "train_seed": seed if train_seed is None else train_seed,
        "available": {pool.name: len(pool.examples) for pool in source.pools},
        "duplicates_dropped": dropped,
        "rows": {"train": len(train), "calibration": len(calibration), "test": len(test)},
        "classes": classes,
        "warnings": check(source.task, splits) + _across(dropped) + _conflicts(dropped),
    }
    return Splits(source.task, train, calibration, test, report)


def without_long_prompts(source: Source, max_characters: int) -> Source:
    """Return the source without the rows whose rendered prompt is longer, the counts noted in its detail.

    Raises:
        DataError: no row of a pool is short enough.
    """
    task, pools, dropped = source.task, [], 0
    for pool in source.pools:
        short = tuple(
            e for e in pool.examples if len(render(task.template, e.fields, task.labels)[0]) <= max_characters
        )
        if not short:
            raise DataError(f"{pool.name}: no prompt has {max_characters} characters or fewer: raise the limit")
        dropped += len(pool.examples) - len(short)
        pools.append(replace(pool, examples=short))
    detail = f"{source.detail}; {dropped} rows with prompts over {max_characters} characters left out"
    return replace(source, pools=tuple(pools), detail=detail)


def drop_duplicates(source: Source) -> tuple[list[Pool], dict[str, dict[str, int]]]:
    """Return the pools without repeated prompts, and what was dropped by pool.

    Two examples are the same when their prompts are, up to case and white space. The first one stays,
    where test comes before calibration and calibration before train.
    """
    task = source.task
    owner: dict[str, tuple[str, int]] = {}  # prompt -> (pool, label) of the one that stays
    kept: dict[str, Pool] = {}
    dropped: dict[str, dict[str, int]] = {}
    for pool in sorted(source.pools, key=lambda p: min(ROLES.index(r) for r in p.roles)):
        count = dropped[pool.name] = {"within": 0, "across": 0, "conflicting_labels": 0}
        rows = []
        for example in pool.examples:
            key = " ".join(render(task.template, example.fields, task.labels)[0].casefold().split())
            if key not in owner:
                owner[key] = (pool.name, example.label)
                rows.append(example)
                continue
            first_pool, first_label = owner[key]
            count["within" if first_pool == pool.name else "across"] += 1
            count["conflicting_labels"] += first_label != example.label
        kept[pool.name] = Pool(pool.name, tuple(rows), pool.roles, pool.default_rows)
    return [kept[pool.name] for pool in source.pools], {pool.name: dropped[pool.name] for pool in source.pools}


def check(task: Task, splits: Mapping[Role, tuple[Example, ...]]) -> list[str]:
    """Return warnings about splits that can be used, but not for everything.

    Raises:
        DataError: fewer training rows than classes, only one class in the training rows, or no training rows.
    """
    train, calibration = splits["train"], splits["calibration"]
    if len(train) < len(task.labels):
        raise DataError(
            f"{task.name}: {len(train)} training rows are fewer than the {len(task.labels)} classes: add rows, or "
            "ask for fewer calibration and test rows"
        )
    present = Counter(e.label for e in train)
    if len(present) == 1:
        only = task.labels[next(iter(present))]
        raise DataError(
            f"{task.name}: every training row has the label {only!r}, there is nothing to learn: check the label "
            "field, and that the file is not cut off"
        )
    warnings = []
    for index, label in enumerate(task.labels):
        if index not in present:
            warnings.append(
                f"no training row has the label {label!r}: the model is never taught it, and what it says about "
                "that label is the base model's guess"
            )
    for role in ("calibration", "test"):
        unseen = sorted({task.labels[e.label] for e in splits[role] if e.label not in present})
        if unseen:
            warnings.append(f"the {role} split holds labels that no training row has: {unseen}")
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
    seen = {e.label for e in calibration}
    if len(seen) == 1:
        warnings.append(
            f"every calibration row has the label {task.labels[min(seen)]!r}: temperatures, thresholds and "
            "prediction sets fitted on them say nothing about the other labels"
        )
    elif seen and (unseen := [task.labels[i] for i in sorted(present) if i not in seen]):
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
    gone = sum(dropped.values()) - dropped["conflicting_labels"]
    if rest < 0 or (left_open and rest < len(left_open)):
        wanted = " + ".join(f"{role} {sizes.get(role, 'at least 1')}" for role in pool.roles)
        raise DataError(
            f"{pool.name}: {wanted} rows asked for, {available} are there"
            + (f" (after {gone} duplicates were dropped)" if gone else "")
            + ": ask for fewer"
        )
    if len(left_open) == 1:
        role = left_open[0]
        sizes[role] = rest if pool.default_rows is None or len(pool.roles) > 1 else min(rest, pool.default_rows)
    elif left_open:
        total = sum(SHARES[role] for role in left_open)
        for role in left_open[:-1]:
            sizes[role] = max(1, rest * SHARES[role] // total)
        sizes[left_open[-1]] = rest - sum(sizes[role] for role in left_open[:-1])
    return sizes


def _across(dropped: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [
        f"{name}: {count['across']} rows repeat rows of another split's file and are left out here, so that nothing is "
        "measured on a row that was trained on; a file with many of them was not split cleanly"
        for name, count in dropped.items()
        if count["across"]
    ]


def _conflicts(dropped: Mapping[str, Mapping[str, int]]) -> list[str]:
    return [
        f"{name}: {count['conflicting_labels']} rows repeat another row's prompt with another label: the first one "
        "stays, check which is right"
        for name, count in dropped.items()
        if count["conflicting_labels"]
    ]


def _class_counts(task: Task, rows: tuple[Example, ...]) -> dict[str, int]:
    present = Counter(e.label for e in rows)
    return {label: present[index] for index, label in enumerate(task.labels)}
