"""A report that somebody sent, into results.json, RESULTS.md and the sentences of pages on a GPU."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from benchmarks.harness.provenance import ROOT
from benchmarks.harness.record import FOLDER, Record, read, write
from laplora.errors import DataError
from laplora.files.strict_json import strict_json
from training.report.markdown import fill

FORMAT = "laplora-gpu 1"
Records = Sequence[Mapping[str, Any]]
#: Text of a figure that cannot be anything else than text on a page.
_PLAIN = re.compile(r"[\w ,.:;'%()+/@=-]*")


def publish(file: Path) -> int:
    """Write a report's figures in the place of those of the same card, and all pages that have them; return 0.

    Raises:
        DataError: another file, a trial, or a report without figures.
    """
    figures = read_report(file)
    cards = {figure["hardware"] for figure in figures}
    others = [r for r in read(FOLDER) if not (r["name"].startswith("gpu, ") and r["hardware"] in cards)]
    records = [*others, *figures]
    write(records, FOLDER)
    for name, sentence in SENTENCES.items():
        page = ROOT / name
        page.write_text(with_sentence(page.read_text(encoding="utf-8"), sentence, records), encoding="utf-8")
    print(f"{len(figures)} figures of {', '.join(sorted(cards))}: look at git diff, then commit")
    return 0


def read_report(file: Path) -> list[dict[str, Any]]:
    """Return the figures of a report of all steps at full size; raise DataError for anything else."""
    try:
        report: Any = strict_json(file.read_bytes())
        head, steps = report["head"], report["steps"]
        if head["format"] != FORMAT or head["whole"] is not True:
            raise DataError(f"{file.name} is of a trial or of another format, got {head}")
        sent = json.dumps([one for step in steps.values() if step["status"] == "passed" for one in step["records"]])
        figures = list(map(asdict, TypeAdapter(list[Record]).validate_json(sent, strict=True)))
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise DataError(f"{file.name} is no report of make gpu: {error}") from None
    for figure in figures:
        texts = [figure["name"], figure["baseline"], figure["hardware"], *figure["measured"].values()]
        if not figure["name"].startswith("gpu, ") or not all(map(_PLAIN.fullmatch, [*texts, figure["target"] or ""])):
            raise DataError(f"{file.name} has a figure that is none of a GPU's: {figure['name']!r}")
    if not figures:
        raise DataError(f"{file.name} has no figures")
    return figures


def with_sentence(page: str, sentence: Callable[[Records], str], records: Records) -> str:
    """Return a page with its sentence on a GPU."""
    return fill(page, "gpu", {"figures": sentence([r for r in records if r["name"].startswith("gpu, ")])})


def _ran(part: str, yes: str, no: str) -> Callable[[Records], str]:
    """Return a sentence on whether a part was measured, and on which cards."""

    def sentence(records: Records) -> str:
        cards = dict.fromkeys(r["hardware"] for r in records if r["name"].startswith(part))
        return f"{yes} ([{', '.join(cards)}](../benchmarks/RESULTS.md))" if cards else no

    return sentence


def _counts(records: Records) -> str:
    """Return how much of the count of memory was measured on each card, by what was run."""
    ratios: dict[str, dict[str, list[float]]] = {}
    for r in records:
        if found := re.search(r": memory, (training step|fit|Laplace).*, over the count$", r["name"]):
            ratios.setdefault(r["hardware"], {}).setdefault(found[1], []).append(r["value"])
    cards = [
        f"on {card} " + ", ".join(f"{_RUN[run]} takes {min(of):.2f} to {max(of):.2f} of it" for run, of in runs.items())
        for card, runs in ratios.items()
    ]
    return f"{'; '.join(cards)} ([figures](../benchmarks/RESULTS.md))" if cards else "**it has not run on a GPU yet**"


_RUN = {"training step": "a training step", "fit": "a fit", "Laplace": "a Laplace answer"}
#: By page, its sentence between a pair of markers.
SENTENCES: dict[str, Callable[[Records], str]] = {
    "docs/models.md": _counts,
    "docs/evidence.md": _ran("gpu, ", "A GPU has measured it", "No GPU has measured it yet"),
    "docs/training.md": _ran("gpu, two cards: ", "It ran on two GPUs", "It has not run on two GPUs"),
    "docs/ray.md": _ran("gpu, Ray: ", "It ran on a GPU", "No GPU was measured"),
    "docker/README.md": _ran("gpu, image: ", "The image ran on a GPU", "No image has run on a GPU yet"),
}
