"""Whether inputs of another kind are noticed.

    python -m benchmarks.familiarity --data FOLDER                # all; twenty minutes of one core
    python -m benchmarks.familiarity --data FOLDER --only fields  # the default artifact alone; others stay
    python -m benchmarks.familiarity --tables                     # measures nothing: RESULTS.md again

FOLDER holds the data sets of homes.py, each with the files that its authors publish. All but ``fields`` need the
adapters that ``benchmarks.evidence`` keeps. The states of models on texts are kept in runs/familiarity: a second call
runs nothing. Nothing here is a time, so a busy machine gives the same figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.evidence.__main__ import RUNS
from benchmarks.familiarity.homes import HOMES, home_of, out_of_distribution
from benchmarks.familiarity.models import Shown, shown
from benchmarks.familiarity.page import render
from benchmarks.familiarity.scores import detections, flags, scores
from benchmarks.harness import provenance
from laplora.familiarity.percentile import watched_layers
from laplora.prompts.examples import label_tensor

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
SCRATCH = provenance.ROOT / "runs" / "familiarity"
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
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder with the adapters")
    parser.add_argument("--only", choices=list(HOMES), nargs="+", help="these homes alone")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the page again")
    options = parser.parse_args(arguments)
    if options.data is None and not options.tables:
        parser.error("--data FOLDER is needed")
    torch.set_num_threads(1)
    for name in () if options.tables else options.only or HOMES:
        print(f"{name} ...", flush=True)
        begun = {"date": provenance.today(), "commit": provenance.commit()}
        result = measure(name, options.data, options.runs, SCRATCH / name)
        found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        found[name] = {"measured": begun, **result}
        RESULTS.write_text(json.dumps({key: found[key] for key in HOMES if key in found}, indent=1) + "\n")
    (FOLDER / "RESULTS.md").write_text(render(json.loads(RESULTS.read_text())))


def measure(name: str, data: Path, runs: Path, folder: Path) -> Mapping[str, Any]:
    """Return how well every score detects inputs of other sets, and how often familiar rows are flagged."""
    home = home_of(name, data, runs)
    like = [*home.calibration, *home.new]
    sets = {"train": home.train, "like": like}
    texts = {part: [str(row.fields["text"]) for row in rows] for part, rows in sets.items()}
    seen = {
        title: shown(home.classifier, some, folder / f"{title}.safetensors")
        for title, some in (texts | out_of_distribution(name, home, data)).items()
    }
    train, pool = seen.pop("train"), seen.pop("like")
    labels, truths = (label_tensor(rows, home.classifier.class_count) for rows in sets.values())
    alike, count = home.classifier.template.ends_alike, train.hidden.shape[1]
    every = scores(train, labels, ends_alike=alike)
    score: Callable[[Shown], torch.Tensor] = every["familiarity"]
    strange = {title: score(shown) for title, shown in seen.items()}
    return {
        "labels": home.classifier.class_count,
        "rows": {"train": len(home.train), "calibration": len(home.calibration), "new": len(home.new)},
        "layers": list(watched_layers(count, ends_alike=alike)),
        "tokens": home.classifier.ending_tokens,
        "accuracy": round(float((pool.logits.argmax(1) == truths).double().mean()), 4),
        "detection": detections(every, pool, seen),
        "flags": flags(score(pool), len(home.calibration), strange, RATE),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
