"""The tasks that models are trained for, and the rows that are strange to them."""

from __future__ import annotations

import csv
import json
import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from laplora.prompts.examples import Example
from training.data.corruptions import CorruptionKind, corrupt

#: A text and the number of its label.
Row = tuple[str, int]
#: Nobody's rows: other languages, prompt injections, hardly any text; written for this benchmark.
_TEXTS = Path(__file__).with_name("texts.json")
#: Rows of another data set that a home is shown.
_SHOWN = 200
#: Longest passage, in characters: no home's rows are longer.
_LONGEST = 300


@dataclass(frozen=True)
class Home:
    """A task's rows; the parts share no text.

    Attributes:
        template: of the prompt; None: a classification head reads the text alone.
        pool: rows that calibrate and rows that test, drawn anew each time.
        epochs: of the training.
        near: further texts that only this home is shown, by name: of its own kind, none of its labels.
    """

    labels: tuple[str, ...]
    template: str | None
    train: Sequence[Row]
    pool: Sequence[Row]
    near: Mapping[str, Sequence[str]]
    epochs: int


def sst2(data: Path) -> Home:
    """Return SST-2's sentences."""
    rows = _lines(data / "sst2" / "dev.tsv")[1:]
    parts = [(text.strip(), int(label)) for text, label in (line.split("\t") for line in rows)]
    template = "Review: {text}\nSentiment:"
    return _home(("negative", "positive"), template, parts, 300, {})


def emotion(data: Path) -> Home:
    """Return TweetEval's tweets by emotion; tweets of its irony task are near."""
    folder = data / "tweet_eval"
    rows = []
    for split in ("train", "test"):
        labels = _lines(folder / "emotion" / f"{split}_labels.txt")
        texts = _lines(folder / "emotion" / f"{split}_text.txt")
        rows += [(text.strip(), int(label)) for text, label in zip(texts, labels, strict=True)]
    near = {"irony tweets": [text.strip() for text in _lines(folder / "irony" / "test_text.txt")]}
    names = ("anger", "joy", "optimism", "sadness")
    return _home(names, "Tweet: {text}\nThe emotion of this tweet is", rows, 300, near)


def banking77(data: Path) -> Home:
    """Return the questions of every second intent of Banking77; those of the others are near."""
    rows = []
    for split in ("train", "test"):
        with (data / "banking77" / f"{split}.csv").open(newline="", encoding="utf-8") as file:
            rows += [(row["text"].strip(), row["category"]) for row in csv.DictReader(file)]
    names = sorted({label for _, label in rows})
    kept = tuple(names[::2])
    inside = [(text, kept.index(label)) for text, label in rows if label in kept]
    outside = [text for text, label in rows if label not in kept]
    return _home(kept, None, inside, 12, {"the other intents": outside}, each=True)


def trec(data: Path) -> Home:
    """Return TREC's questions by what they ask for."""
    words = {
        "ABBR": "abbreviation",
        "DESC": "description",
        "ENTY": "thing",
        "HUM": "person",
        "LOC": "place",
        "NUM": "number",
    }
    codes = list(words)
    rows = []
    for split in ("train", "test"):
        for line in (data / "trec" / f"{split}.txt").read_text(encoding="latin-1").splitlines():
            tag, _, text = line.partition(" ")
            if text.strip():
                rows.append((text.strip(), codes.index(tag.partition(":")[0])))
    return _home(tuple(words.values()), "Question: {text}\nThe answer is a", rows, 300, {}, epochs=4)


def clinc150(data: Path, count: int = 12) -> Home:
    """Return CLINC150's queries in scope, so many of each label to train on; those out of scope are near."""
    splits = json.loads((data / "clinc150" / "data_full.json").read_text())
    rows = [row for name in ("train", "val", "test") for row in splits[name]]
    names = tuple(sorted({label for _, label in rows}))
    inside = [(text, names.index(label)) for text, label in rows]
    near = {"out of scope": [text for text, _ in splits["oos_test"]]}
    return _home(names, None, inside, count, near, each=True, epochs=3)


#: Homes once more with more training rows. They are shown near strangers alone, and are strangers to none.
MORE_ROWS: Mapping[str, Callable[[Path], Home]] = {"clinc150_3000": partial(clinc150, count=20)}
HOMES: Mapping[str, Callable[[Path], Home]] = {
    "sst2": sst2,
    "emotion": emotion,
    "banking77": banking77,
    "trec": trec,
    "clinc150": clinc150,
    **MORE_ROWS,
}


def strangers(name: str, data: Path) -> dict[str, list[str]]:
    """Return by set the texts that are strange to a home."""
    home = HOMES[name](data)
    sets = {near: list(texts) for near, texts in home.near.items()}
    if name in MORE_ROWS:
        return sets
    for other, of in HOMES.items():
        if other != name and other not in MORE_ROWS:
            sets[other] = [text for text, _ in of(data).pool[:_SHOWN]]
    boolq = [json.loads(line)["passage"][:_LONGEST] for line in _lines(data / "boolq" / "dev.jsonl")[:_SHOWN]]
    arc = _lines(data / "arc" / "ARC-Easy" / "ARC-Easy-Test.jsonl")[:_SHOWN]
    sets["passages"] = boolq
    sets["school questions"] = [json.loads(line)["question"]["stem"][:_LONGEST] for line in arc]
    sets |= json.loads(_TEXTS.read_text(encoding="utf-8"))
    kinds: Mapping[str, tuple[CorruptionKind, float]] = {
        "random letters": ("gibberish", 1.0),
        "shuffled words": ("word_shuffle", 1.0),
        "typing mistakes": ("typos", 0.3),
    }
    for title, (kind, severity) in kinds.items():
        examples = [Example(str(i), {"text": text}, label, 2) for i, (text, label) in enumerate(home.pool[-_SHOWN:])]
        sets[title] = [str(corrupt(example, kind, severity, 0).fields["text"]) for example in examples]
    return sets


def _home(
    labels: tuple[str, ...],
    template: str | None,
    rows: Sequence[Row],
    count: int,
    near: Mapping[str, Sequence[str]],
    *,
    each: bool = False,
    epochs: int = 5,
) -> Home:
    """Return a home with so many training rows, or so many of each label, and at most 1,200 other rows."""
    draw, seen = random.Random(0), set[str]()
    order = [row for row in draw.sample(rows, len(rows)) if not (row[0] in seen or seen.add(row[0]))]  # type: ignore[func-returns-value]
    if each:
        by_label = defaultdict(list)
        for row in order:
            by_label[row[1]].append(row)
        train = [row for label in sorted(by_label) for row in by_label[label][:count]]
        rest = [row for label in sorted(by_label) for row in by_label[label][count:]]
        draw.shuffle(rest)
    else:
        train, rest = order[:count], order[count:]
    inside = {text for text, _ in rows}
    outside = {name: [text for text in texts if text not in inside] for name, texts in near.items()}
    shown = {name: draw.sample(texts, min(len(texts), 1000)) for name, texts in outside.items()}
    return Home(labels, template, train, rest[:1200], shown, epochs)


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
