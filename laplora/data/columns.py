"""Which columns of a file hold the text and the label, and the rows of these two that can be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from laplora.data.corrections import folded
from laplora.data.near_copies import near_copies
from laplora.data.records import Record
from laplora.errors import DataError
from laplora.prompts.groups import grouped
from laplora.prompts.labelled import empty, label_text, row_id, soft_label, soft_shares
from laplora.prompts.rows import MAX_LABELS

#: With fewer rows no threshold reaches an error rate of 5 %, even without a mistake.
FEWEST_ROWS = 20
#: A column of more different numbers holds amounts or keys, not labels.
_MOST_NUMBERS = 20
_TEXTS = {"text", "message", "sentence", "content", "body", "review", "comment", "question", "query", "utterance"}
_LABELS = {"label", "category", "class", "topic", "intent", "target", "sentiment"}
#: Labels, in lower case, that may be meant for none.
_NONE = {"none", "null", "n/a", "na", "-", "?"}
_SHOWN = 5


@dataclass(frozen=True)
class LabelledTexts:
    """The usable rows of a file.

    Attributes:
        rows: dicts of ``id``, ``text``, ``label``, a dict of probabilities where it is soft, and ``group``, which is
            empty where a row stands alone.
        labels: their names, sorted; notes: what was left out or is odd, a sentence each.
    """

    rows: tuple[dict[str, Any], ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...]


def columns_of(records: Sequence[Record]) -> list[str]:
    """Return the names of all columns, in the order of their first rows."""
    return list(dict.fromkeys(name for record in records for name in record.values))


def find_text(records: Sequence[Record]) -> str | None:
    """Return the column that holds the text: the longest, or the only usual name of several; None in doubt."""
    lengths = dict[str, float]()
    for name in columns_of(records):
        joined = "".join(values := _filled(records, name))
        if len(set(values)) > len(values) / 2 and 2 * sum(map(str.isalpha, joined)) > len(joined):
            lengths[name] = len(joined) / len(values)
    longest = max(lengths.values(), default=0)
    return _only([name for name, length in lengths.items() if 2 * length >= longest], records, _TEXTS)


def find_label(records: Sequence[Record], text: str) -> str | None:
    """Return the column that holds the label: of few values or soft ones, or the only usual name of several; None in
    doubt.
    """
    few = []
    for name in columns_of(records):
        values = _filled(records, name)
        numbers = all(value.lstrip("-").replace(".", "", 1).isdigit() for value in values)
        most = min(len(values) / 2, _MOST_NUMBERS if numbers else len(values))
        labels = [value for record in records if not empty(value := record.values.get(name))]
        soft = bool(labels) and all(soft_label(value) for value in labels)
        few += [name] if name != text and (soft or 2 <= len(set(values)) <= most) else []
    return _only(few, records, _LABELS)


def _only(likely: list[str], records: Sequence[Record], usual: set[str]) -> str | None:
    named = [name for name in likely or columns_of(records) if name.strip().casefold() in usual]
    return next((some[0] for some in (likely, named) if len(some) == 1), None)


def _filled(records: Sequence[Record], name: str) -> list[str]:
    values = [record.values.get(name) for record in records]
    return [label_text(value) for value in values if isinstance(value, str | int | float) and not empty(value)]


def labelled_texts(
    file: Path, records: Sequence[Record], text: str, label: str, group: str | None = None
) -> LabelledTexts:
    """Return the rows of a file that have a text and a label, each once.

    Labels that differ in case or white space alone are one, by the most frequent spelling, on one line. A text with
    several labels stays with each. Near-copies of a text are a group (``near_copies``), and so are the rows that share
    a value of the column ``group``.

    Raises:
        DataError: no such column, values that are neither text nor number, no header, or too few rows or labels, or too
            many labels.
    """
    named = (text, label) if group is None else (text, label, group)
    _check_columns(file, records, named)
    gaps = {name: [one.line for one in records if empty(one.values.get(name))] for name in (text, label)}
    nan = [one.line for one in records if str(one.values.get(label)).strip().casefold() == "nan"]
    filled = [one for one in records if not any(empty(one.values.get(name)) for name in (text, label))]
    possible = [_shares(file, one, label) for one in filled]
    spellings = Counter(name for shares in possible for name in shares)
    spelling = {folded(one): " ".join(one.split()) for one, _ in reversed(spellings.most_common())}
    copies, rows = list[int](), dict[tuple[str, frozenset[tuple[str, float]]], tuple[Record, dict[str, Any]]]()
    for record, given_shares in zip(filled, possible, strict=True):
        values = record.values
        given, shares = str(values[text]), dict[str, float]()
        for name, share in given_shares.items():
            shares[spelling[folded(name)]] = shares.get(spelling[folded(name)], 0.0) + share
        row: dict[str, Any] = {"id": row_id(values, f"line {record.line}"), "text": given}
        row["label"] = next(iter(shares)) if len(shares) == 1 else shares
        if rows.setdefault((folded(given), frozenset(shares.items())), (record, row))[1] is not row:
            copies.append(record.line)
    counts = Counter(name for _, shares in rows for name, _ in shares)
    texts = Counter(words for words, _ in rows)
    differ = [record.line for (words, _), (record, _) in rows.items() if texts[words] > 1]
    single = sorted(name for name, count in counts.items() if count == 1)
    kept = [one for (_, shares), one in rows.items() if all(counts[name] > 1 for name, _ in shares)]
    labels = tuple(sorted(counts.keys() - set(single)))
    alike, compared = near_copies([row["text"] for _, row in kept])
    given_groups = [None if group is None else record.values.get(group) for record, _ in kept]
    keys = [[leader, *([] if empty(one) else [str(one)])] for leader, one in zip(alike, given_groups, strict=True)]
    groups = [str(number) for number in grouped(keys).tolist()]
    together, sizes = Counter(groups), Counter(alike)
    copied = [one.line for (one, _), leader in zip(kept, alike, strict=True) if sizes[leader] > 1]
    near = sorted(set(copied) - set(differ))
    notes = [
        _note(gaps[text], "without a text: left out"),
        _note(sorted(set(gaps[label]) - set(nan)), "without a label: left out"),
        _note(nan, "with 'nan' for a label, which tables write where there is none: left out"),
        _note(copies, "with the text and the label of an earlier one: left out"),
        _note(differ, "with a text that has several labels: each is kept, so correct those that are wrong"),
        _note(near, "that have a near-copy: each is measured by heads that know none of its copies"),
    ]
    if compared < len(kept):
        notes.append(
            f"from line {kept[compared][0].line} on, only rows with the same words count as near-copies: comparing all "
            "rows would take too long"
        )
    if odd := [name for name in labels if name.casefold() in _NONE]:
        notes.append(f"{odd[0]!r} is taken for a label: empty these cells if they mean that there is none")
    if len(spelling) < len(spellings):
        others = [" ".join(one.split()) for one in spellings if one != spelling[folded(one)]]
        counted = f"{len(spellings)} spellings of {len(spelling)} labels, such as {others[0][:32]!r}"
        notes.append(f"labels that differ in case or white space alone are one: {counted}")
    if single:
        meant = [
            name + "".join(f" (a slip for {one!r}?)" for one in get_close_matches(name, labels, 1)) for name in single
        ]
        notes.append(f"labels with one row, left out and never answered: {', '.join(meant)[:200]}")
    if len(labels) < max(2, len(single)):
        raise DataError(
            f"{file}: {len(labels)} labels of column {label!r} have several rows, {len(single)} have one. A classifier "
            "needs at least two with several: label more rows, or name another column by --label"
        )
    if len(labels) > MAX_LABELS:
        raise DataError(f"{file}: column {label!r} has {len(labels)} labels, and at most {MAX_LABELS} work: join some")
    if len(together) < FEWEST_ROWS:
        apart = "" if len(together) == len(kept) else f" {len(together)} but for near-copies,"
        raise DataError(
            f"{file}: {len(kept)} rows can be used,{apart} and fewer than {FEWEST_ROWS} show no error rate of 5 %: "
            "label more, 200 are a good start"
        )
    for (_, row), number in zip(kept, groups, strict=True):
        row["group"] = number if together[number] > 1 else ""
    return LabelledTexts(tuple(row for _, row in kept), labels, tuple(filter(None, notes)))


def _shares(file: Path, record: Record, label: str) -> dict[str, float]:
    """Return the labels that a row's label leaves possible, with the probability of each; DataError for none."""
    value = record.values[label]
    try:
        soft = soft_shares(value, label)
    except DataError as error:
        raise DataError(f"{file}, line {record.line}: {error}") from None
    return {str(label_text(value)): 1.0} if soft is None else soft


def _check_columns(file: Path, records: Sequence[Record], named: Sequence[str]) -> None:
    columns, (text, label) = columns_of(records), named[:2]
    if missing := [name for name in named if name not in columns]:
        raise DataError(f"{file}: there is no column {missing[0]!r}: name one of {', '.join(map(repr, columns))}")
    if text == label:
        raise DataError(f"{file}: text and label are both {text!r}: name two columns by --text and --label")
    for name in named:
        allowed = str | int | float | dict | None if name == label else str | int | float | None
        if odd := [one.line for one in records if not isinstance(one.values.get(name), allowed)]:
            raise DataError(
                f"{file}, line {odd[0]}: {name!r} is a list or an object: give one text and one label a row"
            )
    if len(text.split()) > 2 and label in _filled(records, label):
        raise DataError(f"{file}: its first line looks like a row: put a line with names above it, such as text,label")


def _note(lines: Sequence[int], what: str) -> str:
    """Return how many rows something is true of, and the lines of the first; empty for none."""
    some = ", ".join(map(str, lines[:_SHOWN])) + (", ..." if len(lines) > _SHOWN else "")
    rows, of = ("1 row", "line") if len(lines) == 1 else (f"{len(lines)} rows", "lines")
    return f"{rows} {what} ({of} {some})" if lines else ""
