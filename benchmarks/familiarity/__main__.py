"""Whether inputs of another kind are noticed.

    python -m benchmarks.familiarity --data FOLDER                  # all; an hour or more
    python -m benchmarks.familiarity --data FOLDER --only clinc150  # the others keep their results
    python -m benchmarks.familiarity --tables                       # measures nothing: RESULTS.md again

FOLDER holds sst2, tweet_eval, banking77, trec, clinc150, boolq and arc, each with the files
that its authors publish (homes.py names them). Models and what they show of texts are kept in runs/familiarity: a
second call trains and runs nothing. Nothing here is a time, so a busy machine gives the same figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.familiarity import models
from benchmarks.familiarity.homes import HOMES, strangers
from benchmarks.familiarity.page import render
from benchmarks.familiarity.scores import detections, flags, scores
from benchmarks.harness import provenance
from laplora.familiarity.percentile import watched_layers

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
SCRATCH = provenance.ROOT / "runs" / "familiarity"
#: Homes by which layers, directions, their combination and the logits' part were chosen.
CHOSEN_ON = ("sst2", "emotion", "banking77")
#: The flag's rate, the default of the settings.
RATE = 0.02


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the chosen homes; those not chosen keep their results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.familiarity",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--only", choices=list(HOMES), nargs="+", help="these homes alone")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the page again")
    options = parser.parse_args(arguments)
    if options.data is None and not options.tables:
        parser.error("--data FOLDER is needed")
    torch.set_num_threads(1)
    for name in () if options.tables else options.only or HOMES:
        print(f"{name} ...", flush=True)
        begun = {"date": provenance.today(), "commit": provenance.commit()}
        result = measure(name, options.data, SCRATCH / name)
        found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        found[name] = {"measured": begun, "chosen_on": name in CHOSEN_ON, **result}
        RESULTS.write_text(json.dumps({key: found[key] for key in HOMES if key in found}, indent=1) + "\n")
    (FOLDER / "RESULTS.md").write_text(render(json.loads(RESULTS.read_text())))


def measure(name: str, data: Path, folder: Path) -> Mapping[str, Any]:
    """Return what every score tells of a home's strangers, and how often familiar rows are flagged."""
    home, sets = HOMES[name](data), strangers(name, data)
    classifier = models.classifier(home, folder)
    states = folder / "states"
    train, pool = (
        models.shown(classifier, [text for text, _ in rows], states / f"{part}.safetensors")
        for part, rows in (("train", home.train), ("pool", home.pool))
    )
    strange = {title: models.shown(classifier, texts, states / f"{title}.safetensors") for title, texts in sets.items()}
    labels = torch.tensor([label for _, label in home.train])
    truths = torch.tensor([label for _, label in home.pool])
    alike = classifier.template.ends_alike
    table = detections(scores(train, labels, ends_alike=alike), pool, strange)
    return {
        "labels": len(home.labels),
        "rows": {"train": len(home.train), "pool": len(home.pool)},
        "near": list(home.near),
        "layers": list(watched_layers(train.hidden.shape[1], ends_alike=alike)),
        "accuracy": round(float((pool.logits.argmax(1) == truths).double().mean()), 4),
        "detection": table,
        "flags": flags(train, labels, pool, strange, ends_alike=alike, rate=RATE),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
