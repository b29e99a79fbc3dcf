"""Rows as a user has them: dicts in a list or an iterator, a data frame, a data set of the hub's library."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from laplora.classifier import Classifier
from laplora.data.near_copies import near_copies
from laplora.decisions.thresholds import Guarantee
from laplora.errors import ConfigError, DataError, warn
from laplora.experts.base import Labelled
from laplora.head import HeadError, fold_numbers
from laplora.prompts.examples import Example, label_tensor
from laplora.prompts.groups import grouped, question_of, row_groups
from laplora.prompts.labelled import example_of, row_id
from laplora.selection.label_audit import text_of

#: Share of the rows that calibrate where no calibration rows are given.
CALIBRATION_SHARE = 0.2
#: With fewer calibration rows, a prior or threshold chosen on them is mostly noise.
FEW_CALIBRATION_ROWS = 20
#: Most problems of rows that one error names.
_SHOWN_PROBLEMS = 5


def read_rows(
    rows: Any, classifier: Classifier, label_field: str | None, what: str = "row", groups: str | None = None
) -> tuple[Example, ...]:
    """Return rows as examples, in order.

    Args:
        rows: an iterable of mappings, a pandas data frame, or a ``datasets.Dataset``, whose class numbers are read by
            its own names of them.
        label_field: name of the label, whose value is a label's name or its number from 0, or a dict of probabilities
            by these. None: rows without labels, which may be texts where the template has one field.
            If several labels may be right: a list of them, which may be empty, or a vector of 0 and 1 by label. A
            list of as many 0 and 1 as there are labels is the vector.
        what: what messages call a row.
        groups: name of the field that has a row's group; None: rows of no group.

    Raises:
        ConfigError: a label field that the prompt would hold, or groups that are no name.
        DataError: the first rows that cannot be used, by number from 0; no rows; or what is no rows at all.
    """
    if label_field in classifier.template.fields:
        raise ConfigError(
            f"label_field {label_field!r} is also a field of template {classifier.template.name!r}: the prompt would "
            "hold the answer"
        )
    if not isinstance(groups, str | None):
        raise ConfigError(f"groups must be the name of a field of the rows, got {type(groups).__name__}")
    has_groups = False
    names, of_data_set = _class_names(rows, classifier.labels, label_field)
    several = classifier.readout.likelihood == "bernoulli"
    examples: list[Example] = []
    problems: list[str] = []
    rendered: set[bool] = set()
    for number, row in enumerate(_mappings(rows, what, classifier.template.fields, texts=label_field is None)):
        values = {str(name): _plain(value) for name, value in row.items()}
        has_groups |= groups in values
        rendered.add("prompt" in values and not set(classifier.template.fields) & set(values))
        try:
            if label_field in values:
                given = values[label_field]
                if several and isinstance(given, list):
                    values[label_field] = named_labels(given, names, vectors=not of_data_set)
                elif isinstance(given, dict):
                    values[label_field] = {named_label(_plain(one), names): _number(p) for one, p in given.items()}
                else:
                    values[label_field] = named_label(given, names)
            name = row_id(values, str(number))
            of_row = (values, name, classifier.template, classifier.labels, label_field)
            examples.append(example_of(*of_row, several=several, groups=groups))
        except DataError as error:
            problems.append(f"{what} {number}: {error}")
    if len(rendered) > 1:
        raise DataError(
            f"some {what}s have a finished 'prompt' and others the fields {list(classifier.template.fields)}: give "
            "all of them with the template's fields"
        )
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        rest = [f"... and {more} more {what}s with a problem"] if more > 0 else []
        raise DataError("\n".join(problems[:_SHOWN_PROBLEMS] + rest))
    if not examples:
        raise DataError(f"there are no {what}s: an iterator can be used once only")
    if groups is not None and not has_groups:
        raise DataError(f"no {what} has the field {groups!r}, which groups names: correct the name, or leave it out")
    return tuple(examples)


def absent_labels(examples: Sequence[Example], labels: Sequence[str]) -> list[str]:
    """Return the labels that some row could have, and none has."""
    present = Counter(label for example in examples for label in _possible(example))
    most = max(example.class_count for example in examples)
    return [label for number, label in enumerate(labels[:most]) if not present[number]]


def check_labels(examples: Sequence[Example], labels: Sequence[str]) -> None:
    """Raise DataError where a label that some row could have is no row's."""
    if absent := absent_labels(examples, labels):
        raise DataError(
            f"no row has the labels {absent[:8]}: give rows of each, or leave them out of the classifier's labels"
        )


def groups_of(classifier: Classifier, examples: Sequence[Example]) -> torch.Tensor:
    """Return (rows,) int64 the group of each row (``row_groups``); prompts that are cut to the same are equal too."""
    tokens = [(row.token_ids, row.class_count) for row in classifier.encode_examples(examples)]
    return row_groups(classifier.template, classifier.labels, examples, tokens)


def groups_with_copies(classifier: Classifier, examples: Sequence[Example]) -> torch.Tensor:
    """Return (rows,) int64 the groups of ``groups_of``, of which near-copies of a text join (``near_copies``)."""
    alike, groups = near_copies([text_of(example.fields) for example in examples])[0], groups_of(classifier, examples)
    return grouped([(group, ("alike", one)) for group, one in zip(groups.tolist(), alike, strict=True)])


def without_twins(
    classifier: Classifier, train: Sequence[Example], held_out: Sequence[Example]
) -> tuple[tuple[Example, ...], int]:
    """Return the training rows that share a group with no calibration row, and how many others there are.

    Warns of those, and of equal prompts with different labels.

    Raises:
        DataError: no other training row.
    """
    groups = groups_of(classifier, [*held_out, *train]).tolist()
    calibrating, training = groups[: len(held_out)], groups[len(held_out) :]
    seen, known = set(calibrating), set(training)
    kept = tuple(example for example, group in zip(train, training, strict=True) if group not in seen)
    dropped = len(train) - len(kept)
    if not kept:
        raise DataError(
            "every training row has the prompt, or is of the group, of a calibration row: give calibration rows that "
            "the model was not fine-tuned on"
        )
    if dropped:
        warn(
            f"{dropped} training rows have the prompt, or are of the group, of a calibration row and are left out of "
            f"the curvature. If the model was fine-tuned on them, it is surer of "
            f"{sum(g in known for g in calibrating)} of {len(held_out)} calibration rows than of new ones, and so will "
            "the answers be: give others"
        )
    warn_of_conflicts(classifier, [*train, *held_out])
    return kept, dropped


def shared_folds(
    classifier: Classifier, train: Sequence[Example], held_out: Sequence[Example], folds: int, seed: int
) -> Labelled:
    """Return the labels of rows, with the folds that every expert shares; no fold parts a group.

    Args:
        train: rows that trained an adapter, none of a group of ``held_out`` (``without_twins``); empty without one.
        held_out: rows that trained none. Their folds are those that calibrate alone, whatever ``train`` is.

    Raises:
        DataError: rows of fewer than two groups.
    """
    everyone = (*train, *held_out)
    groups, rows = groups_of(classifier, everyone), len(train)
    try:
        parts = [fold_numbers(len(part), folds, seed, part) for part in (groups[:rows], groups[rows:]) if len(part)]
    except HeadError as error:
        raise DataError(str(error)) from error
    counts = torch.tensor([example.class_count for example in everyone])
    return Labelled(
        label_tensor(everyone, classifier.class_count),
        torch.arange(classifier.class_count) < counts[:, None],
        groups,
        torch.cat(parts),
        torch.arange(len(everyone)) >= rows,
        classifier.readout.likelihood,
    )


def check_independent(examples: Sequence[Example], guarantee: Guarantee) -> None:
    """Raise ConfigError where rows of a user's group would count as independent ones for a bound."""
    given = [example.group for example in examples if example.group is not None]
    if guarantee == "upper_bound" and len(set(given)) < len(given):
        raise ConfigError(
            "guarantee upper_bound counts independent rows, and calibration rows of a group err together: use "
            "empirical, or give one row of each group"
        )


def check_ordered(classifier: Classifier, ordered: bool) -> None:
    """Raise ConfigError where labels cannot have an order."""
    if ordered and (classifier.readout.likelihood == "bernoulli" or classifier.template.takes_choices):
        raise ConfigError("ordered: labels of which several may be right, or that name choices, have no order")


def warn_of_conflicts(classifier: Classifier, examples: Sequence[Example]) -> None:
    """Warn of rows that repeat another row's prompt with another label."""
    first: dict[str, tuple[int, ...]] = {}
    questions = [(question_of(classifier.template, classifier.labels, e), _labels_of(e)) for e in examples]
    if differ := sum(first.setdefault(question, labels) != labels for question, labels in questions):
        warn(f"{differ} rows repeat another row's prompt with another label: each counts, check which is right")


def split_rows(
    examples: Sequence[Example], seed: int, groups: torch.Tensor | None = None, share: float = CALIBRATION_SHARE
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Return rows for the curvature and rows for calibration, a share of each label, in their order.

    If several labels may be right it is that share of all rows. Groups, (rows,) int64, are of their first row's
    label and are not parted.

    Raises:
        DataError: too few rows for both.
    """
    numbers = list(range(len(examples))) if groups is None else groups.tolist()
    label_of: dict[int, int] = {}
    for group, example in zip(numbers, examples, strict=True):
        label_of.setdefault(group, example.label)  # -1 where there may be several
    draw, drawn = random.Random(f"{seed}/calibration"), set[int]()
    for label in sorted(set(label_of.values())):
        of_label = [group for group, its in label_of.items() if its == label]
        drawn.update(draw.sample(of_label, round(share * len(of_label))))
    chosen = {number for number, group in enumerate(numbers) if group in drawn}
    if len(drawn) < 2 or len(chosen) == len(examples):
        raise DataError(
            f"{len(examples)} rows of {len(label_of)} groups are too few to take calibration rows from them: give "
            "more, or calibration rows"
        )
    rest = tuple(example for number, example in enumerate(examples) if number not in chosen)
    return rest, tuple(examples[number] for number in sorted(chosen))


def _possible(example: Example) -> Iterable[int]:
    """Return the labels that a row's label leaves possible."""
    soft = example.target
    return _labels_of(example) if soft is None else (number for number, share in enumerate(soft) if share)


def _labels_of(example: Example) -> tuple[int, ...]:
    return (example.label,) if example.present is None else example.present


def _mappings(rows: Any, what: str, fields: Sequence[str], *, texts: bool) -> Iterator[Mapping[Any, Any]]:
    expected = f"of the template's fields {list(fields)}"
    if isinstance(rows, (str, bytes, Mapping)) or not isinstance(rows, Iterable):
        splits = ": choose one of its splits" if type(rows).__name__ == "DatasetDict" else ""
        raise DataError(
            f"{what}s must be a list of dicts {expected}, a data frame or a data set, got {type(rows).__name__}{splits}"
        )
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a data frame
        rows = rows.to_dict("records")
    for number, row in enumerate(rows):
        if texts and len(fields) == 1 and isinstance(row, str):
            row = {fields[0]: str(row)}
        if not isinstance(row, Mapping):
            raise DataError(f"{what} {number} must be a dict {expected}, got {type(row).__name__}")
        yield row


def _plain(value: Any) -> Any:
    """Return a value without numpy's or pandas' types; not a number is no value."""
    value = _number(value)
    if isinstance(value, float) and math.isnan(value):
        return None
    return list(value) if isinstance(value, tuple | set | frozenset) else value


def _number(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _class_names(rows: Any, labels: Sequence[str], label_field: str | None) -> tuple[Sequence[str], bool]:
    """Return what the numbers of the label field stand for, in order, and whether a data set says so."""
    features = getattr(rows, "features", None)
    feature = features.get(label_field) if isinstance(features, Mapping) else None
    names = getattr(getattr(feature, "feature", feature), "names", None)  # of one label, or of a list of labels
    if not names:
        return labels, False
    if unknown := [name for name in names if name not in labels]:
        raise DataError(
            f"the data set calls its classes {list(names)[:8]}, of which {unknown[:4]} are not among the labels "
            f"{list(labels)[:8]}: use its names, or turn its numbers into names of yours"
        )
    return list(names), True


def named_label(value: Any, names: Sequence[str]) -> Any:
    """Return a label's name, where it is given by its number; DataError for a number that no label has."""
    whole = isinstance(value, int | float) and not isinstance(value, bool) and value == value // 1
    if not whole or str(value) in names:
        return value
    number = int(value)  # pandas has the whole numbers of a column with a gap as floats
    if str(number) in names:
        return str(number)
    if not 0 <= number < len(names):
        raise DataError(f"the label is {number}, expected a number from 0 to {len(names) - 1}, or one of {list(names)}")
    return names[number]


def named_labels(values: Sequence[Any], names: Sequence[str], *, vectors: bool) -> list[Any]:
    """Return the names of several labels, given by names or numbers, or by 0 and 1 in the order of ``names``."""
    if vectors and len(values) == len(names) and all(not isinstance(v, str) and v in (0, 1) for v in values):
        return [name for name, value in zip(names, values, strict=True) if value]
    return [named_label(value, names) for value in values]
