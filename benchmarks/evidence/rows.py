"""Labelled rows of each data set as its authors publish them, all of a task's rows in one list.

Official splits are put together and dealt again (``splits``): several differ in their label shares between the parts.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from training.data.benchmarks import FIELDS
from training.data.sources import read_benchmark

#: A row: its fields and the index of its label.
Row = tuple[Mapping[str, object], int]

#: MMLU's school subjects that are told apart.
SUBJECTS = (
    "high_school_mathematics",
    "high_school_biology",
    "high_school_chemistry",
    "high_school_psychology",
    "high_school_macroeconomics",
    "high_school_geography",
)
#: Longest text of an exam question, in characters.
_LONGEST_QUESTION = 300
_SNIPS = ("train", "valid", "test")
_TWEETS = ("train", "val", "test")


def sst2(folder: Path) -> list[Row]:
    """Return SST-2's sentences: of the training phrases those that are part of no longer one and end a sentence."""
    phrases: dict[str, int] = {}
    for name in ("train", "dev"):
        for line in (folder / "sst2" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()[1:]:
            text, _, label = line.rpartition("\t")
            phrases.setdefault(text.strip(), int(label))
    parts: set[str] = set()
    rows: list[Row] = []
    for text in sorted(phrases, key=lambda one: (-len(one.split()), one)):
        if text in parts:
            continue
        words = text.split()
        parts.update(" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 1, len(words) + 1))
        if text.endswith((".", "!", "?")):
            rows.append(({"text": text}, phrases[text]))
    return rows


def trec(folder: Path, parts: Sequence[str] = ("train", "test")) -> list[Row]:
    """Return TREC's questions with their coarse label, of some of its parts."""
    labels = ("DESC", "ENTY", "ABBR", "HUM", "LOC", "NUM")
    lines = [line for name in parts for line in _lines(folder / "trec" / f"{name}.txt", "latin-1")]
    parted = (line.partition(" ") for line in lines)
    return [({"text": text.strip()}, labels.index(tag.partition(":")[0])) for tag, _, text in parted]


def tweets(name: str, parts: Sequence[str] = _TWEETS) -> Callable[[Path], list[Row]]:
    """Return what reads a set of TweetEval, some of its parts together."""
    return lambda folder: list(_tweets(folder / "tweet_eval" / name, parts))


def boolq(name: str) -> Callable[[Path], list[Row]]:
    """Return what reads a part of BoolQ: questions about a passage, answered no or yes."""

    def read(folder: Path) -> list[Row]:
        items = map(json.loads, _lines(folder / "boolq" / f"{name}.jsonl", "utf-8"))
        return [({"passage": one["passage"], "question": one["question"]}, int(one["answer"])) for one in items]

    return read


def snips(folder: Path) -> list[Row]:
    """Return SNIPS' requests with their intent, of seven in alphabetical order."""
    parts = [(folder / "snips" / f"{name}.seq.in", folder / "snips" / f"{name}.label") for name in _SNIPS]
    rows = [pair for texts, of in parts for pair in zip(_lines(texts, "utf-8"), _lines(of, "utf-8"), strict=True)]
    intents = sorted({intent.strip() for _, intent in rows})
    return [({"text": " ".join(text.split())}, intents.index(intent.strip())) for text, intent in rows]


def ag_news(folder: Path) -> list[Row]:
    """Return AG News' test part: title and description, of the world, sports, business or technology."""
    with (folder / "ag_news" / "test.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    return [
        ({"text": " ".join(f"{title}. {text}".replace("\\", " ").split())}, int(of) - 1) for of, title, text in lines
    ]


def subj(folder: Path) -> list[Row]:
    """Return objective sentences of plots, and subjective ones of reviews."""
    return list(_by_file(folder / "subj", "objective", "subjective"))


def customer_reviews(folder: Path) -> list[Row]:
    """Return negative and positive sentences of customers."""
    return list(_by_file(folder / "customer_reviews", "negative", "positive"))


def arc_challenge(folder: Path) -> list[Row]:
    """Return ARC-Challenge's questions with four options, its three parts together."""
    rows: list[Row] = []
    for name in ("Train", "Dev", "Test"):
        for line in _lines(folder / "arc" / "ARC-Challenge" / f"ARC-Challenge-{name}.jsonl", "utf-8"):
            item = json.loads(line)
            options = item["question"]["choices"]
            place = [one["label"] for one in options].index(item["answerKey"])
            if len(options) == 4:
                rows.append(({"question": item["question"]["stem"], "choices": [o["text"] for o in options]}, place))
    return rows


def domains(folder: Path) -> list[Row]:
    """Return CLINC150's queries in scope with the domain of their intent, of ten in alphabetical order."""
    splits = json.loads((folder / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    intents = json.loads((folder / "clinc150" / "domains.json").read_text(encoding="utf-8"))
    domain = {intent: number for number, name in enumerate(sorted(intents)) for intent in intents[name]}
    return [({"text": text}, domain[intent]) for name in ("train", "val", "test") for text, intent in splits[name]]


def clinc150(folder: Path) -> list[Row]:
    """Return CLINC150's queries in scope with their intent, of 150."""
    splits = json.loads((folder / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    rows = [(text, intent) for name in ("train", "val", "test") for text, intent in splits[name]]
    intents = sorted({intent for _, intent in rows})
    return [({"text": text}, intents.index(intent)) for text, intent in rows]


def banking77(folder: Path) -> list[Row]:
    """Return Banking77's questions with their category, of 77."""
    rows = []
    for name in ("train", "test"):
        with (folder / "banking77" / f"{name}.csv").open(newline="", encoding="utf-8") as file:
            rows += [(line["text"].strip(), line["category"]) for line in csv.DictReader(file)]
    categories = sorted({category for _, category in rows})
    return [({"text": text}, categories.index(category)) for text, category in rows]


def subjects(_: Path) -> list[Row]:
    """Return questions of six school subjects, from the offline data of ``python -m training``."""
    return [
        ({"text": e.fields["question"]}, number)
        for number, subject in enumerate(SUBJECTS)
        for pool in read_benchmark("mmlu", (subject,)).pools
        for e in pool.examples
        if len(e.fields["question"]) <= _LONGEST_QUESTION
    ]


def fields(folder: Path) -> list[Row]:
    """Return exam questions of four professional fields."""
    rows: list[Row] = []
    for number, names in enumerate(FIELDS.values()):
        for subject in names:
            for split in ("test", "val", "dev"):
                with (folder / "mmlu" / split / f"{subject}_{split}.csv").open(newline="", encoding="utf-8") as file:
                    texts = [line[0].strip() for line in csv.reader(file)]
                rows += [({"text": text}, number) for text in texts if len(text) <= _LONGEST_QUESTION]
    return rows


def arc_easy(_: Path) -> list[Row]:
    return list(_choices("arc_easy", 4))


def openbookqa(_: Path) -> list[Row]:
    return list(_choices("openbookqa", 4))


def _choices(name: str, count: int) -> Iterator[Row]:
    for pool in read_benchmark(name).pools:
        for example in pool.examples:
            if example.class_count == count and len(example.fields["choices"]) == count:
                yield example.fields, example.label


def _by_file(folder: Path, *names: str) -> Iterator[Row]:
    """Yield the lines of a file for each label."""
    for label, name in enumerate(names):
        yield from (({"text": line.strip()}, label) for line in _lines(folder / f"{name}.txt", "latin-1"))


def _tweets(folder: Path, parts: Sequence[str]) -> Iterator[Row]:
    # The training part of sentiment is not to be had.
    for split in (part for part in parts if (folder / f"{part}_labels.txt").is_file()):
        labels = _lines(folder / f"{split}_labels.txt", "utf-8")
        texts = (folder / f"{split}_text.txt").read_text(encoding="utf-8").split("\n")[: len(labels)]
        for text, label in zip(texts, labels, strict=True):  # some texts are blank
            if words := text.replace("@user", "").split():
                yield {"text": " ".join(words)}, int(label)


def _lines(path: Path, encoding: str) -> Sequence[str]:
    # Texts hold characters that splitlines() takes for ends of lines.
    return [line for line in path.read_text(encoding=encoding).split("\n") if line.strip()]
