"""The models that are asked, and the rows that are strange to them."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.evidence.adapters import load_classifier, put
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.plan import unreported
from benchmarks.evidence.tasks import TASKS
from benchmarks.familiarity.corruptions import CorruptionKind, corrupt
from benchmarks.harness.provenance import ARTIFACT
from benchmarks.harness.subject import load_subject
from benchmarks.peers.subject import artifact_rows
from laplora.artifact.folder import read_artifact
from laplora.classifier import Classifier
from laplora.models.base import load_tokenizer
from laplora.prompts.examples import Example

#: The default artifact's task, and tasks of which ``benchmarks.evidence --task NAME`` keeps an adapter.
HOMES = ("fields", "emotion", "trec", "clinc150")
#: Tasks whose texts are strange to the others, and those of the same texts or of nearly the same.
_OTHERS = ("emotion", "irony", "sst2", "banking77", "domains", "trec", "fields", "subjects")
_SAME = {"fields": {"domains", "subjects"}, "clinc150": {"domains"}}
#: Nobody's rows: other languages, prompt injections, hardly any text; written for this benchmark.
_TEXTS = Path(__file__).with_name("texts.json")
#: Rows of a set, and of those that chose nothing.
_SHOWN, _HELD_OUT = 200, 500


@dataclass(frozen=True)
class Home:
    """A model with its rows.

    Attributes:
        classifier: with its trained adapter.
        train: rows that trained it; calibration: rows that calibrate; new: rows like these.
    """

    classifier: Classifier
    train: Sequence[Example]
    calibration: Sequence[Example]
    new: Sequence[Example]


def home_of(name: str, data: Path, runs: Path) -> Home:
    """Return a home; ``runs`` is where ``benchmarks.evidence`` keeps adapters."""
    if name == "fields":
        splits, location = artifact_rows()
        manifest = read_artifact(ARTIFACT).manifest
        words: Mapping[str, str] = dict(zip(manifest.labels, manifest.readout.verbalizers, strict=True))
        model, template = load_subject("nf4").model, manifest.template.template()
        classifier = Classifier(model, load_tokenizer(location), template, words, max_tokens=manifest.max_tokens)
        return Home(classifier, splits.train, splits.calibration, splits.test)
    cell = Cell(unreported(name, 0), runs)
    rows, classifier = cell.rows(data), load_classifier(cell.task)
    put(classifier, load_file(cell.adapters / "early.safetensors"))
    return Home(classifier, rows.train, [rows.pool[place] for place in rows.draws[0]], rows.test)


def out_of_distribution(name: str, home: Home, data: Path) -> dict[str, list[str]]:
    """Return by set the texts that are strange to a home."""
    own = {str(row.fields["text"]) for rows in (home.train, home.calibration, home.new) for row in rows}

    def drawn(texts: Sequence[str], count: int = _SHOWN) -> list[str]:
        rest = sorted({text.strip() for text in texts} - own)
        return random.Random(0).sample(rest, min(count, len(rest)))

    sets = {}
    for other in _OTHERS:
        if other != name and other not in _SAME.get(name, ()):
            sets[other] = drawn([str(fields["text"]) for fields, _ in TASKS[other].read(data)])
    sets |= json.loads(_TEXTS.read_text(encoding="utf-8"))
    kinds: Mapping[str, tuple[CorruptionKind, float]] = {
        "random letters": ("gibberish", 1.0),
        "shuffled words": ("word_shuffle", 1.0),
        "typing mistakes": ("typos", 0.3),
    }
    for title, (kind, severity) in kinds.items():
        sets[title] = [str(corrupt(row, kind, severity, 0).fields["text"]) for row in home.new[-_SHOWN:]]
    clinc150 = json.loads((data / "clinc150" / "data_full.json").read_text(encoding="utf-8"))
    if name == "clinc150":
        sets["out of scope"] = drawn([text for text, _ in clinc150["oos_test"]], _HELD_OUT)
    if name == "fields":
        sets["other subjects"] = drawn([str(fields["text"]) for fields, _ in TASKS["subjects"].read(data)])
        with (data / "ag_news" / "test.csv").open(newline="", encoding="utf-8") as file:
            sets["AG News"] = drawn([f"{title} {text}" for _, title, text in csv.reader(file)], _HELD_OUT)
        sets["CLINC150"] = drawn([text for text, _ in clinc150["test"]], _HELD_OUT)
    return sets
