"""The figures in the sentences of docs/evidence.md and README.md, from the pages that commands write.

python tests/docs/evidence_page.py      # writes them anew
"""

from __future__ import annotations

import json
import re
from statistics import fmean
from typing import Any

from documents import ROOT, read, row

from benchmarks.evidence.decision import Cell, cells
from benchmarks.evidence.plan import REPORTED, SEEDS
from benchmarks.evidence.results import REFERENCE, read_results

PAGES = ("docs/evidence.md", "README.md")
STUDY = "benchmarks/evidence/RESULTS.md"
CURVES = "benchmarks/curves/RESULTS.md"
COUNTS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
#: Of the default artifact's table: what a row is called, and what its manifest calls it.
METHODS = {
    "zero-shot": "zero_shot",
    "fine-tuned (MAP)": "map",
    "temperature scaling": "temperature",
    "**Laplace (served)**": "laplace",
}


def with_figures(page: str) -> str:
    """Return a page with what stands between each pair of markers, ``<!-- said NAME -->`` and ``<!-- /said -->``."""
    pattern = r"(<!-- said (\w+) -->).*?(<!-- /said -->)"
    return re.sub(pattern, lambda found: f"{found[1]}{globals()[found[2]]()}{found[3]}", page, flags=re.DOTALL)


def artifact() -> str:
    measured = json.loads(read("artifacts/sst2-smollm2/manifest.json"))["metrics"]
    rows = [
        " | ".join([name, *(f"{measured[method][figure]:.3f}" for figure in ("accuracy", "nll", "ece"))])
        for name, method in METHODS.items()
    ]
    head = ["| | accuracy | NLL | ECE |", "| --- | ---: | ---: | ---: |"]
    return "\n".join(["\n", *head, *(f"| {one} |" for one in rows), "\n"])


def worth() -> str:
    """Return by task what temperature scaling and conditioned have, for readers who meet none of the others."""
    by = {(c.budget, REPORTED.index(c.task), c.method): c for c in cells(read_results()) if not c.developing}
    lines = ["| task, labels | temperature: NLL, accuracy | conditioned | difference in NLL | verdict |"]
    lines.append("| --- | ---: | ---: | ---: | ---: |")
    for budget, place, _ in sorted(found for found in by if found[2] == "conditioned"):
        both = [by[budget, place, name] for name in (REFERENCE, "conditioned")]
        figures = " | ".join(f"{c.values['nll']:.3f}, {100 * c.values['accuracy']:.1f} %" for c in both)
        gain = both[1].differences["nll"]
        verdict = {"win": "better", "tie": "level", "loss": "worse", "open": "open"}[gain.verdict]
        difference = f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
        lines.append(f"| {_described(both[1])} | {figures} | {difference} | {verdict} |")
    return "\n\n" + "\n".join(lines) + "\n\n"


def _described(cell: Cell) -> str:
    seeds = "" if cell.seeds >= len(SEEDS) else f", {cell.seeds} of {len(SEEDS)} trainings"
    return f"{cell.task}, {cell.budget}{seeds}" + ("" if cell.skill else " (no skill)")


def shift() -> str:
    sets = json.loads(read("docs/results/shift.json"))["sets"]
    texts = [sets["arc_questions"], sets["boolq_passages"]]
    low, high = (100 * end(one["unfamiliar"] for one in texts) for end in (min, max))
    by_map, familiarity = (
        sorted(one["detection"][name]["auroc"] for one in texts) for name in ("map_entropy", "familiarity")
    )
    return (
        f"{low:.0f} to {high:.0f} % are flagged as unfamiliar, and of words of random letters "
        f"{100 * sets['gibberish-1']['unfamiliar']:.0f} %; all of them go to review. Entropy notices less: the AUROC "
        f"of MAP's is {by_map[0]:.3f} to {by_map[1]:.3f} on such texts, that of "
        f"familiarity at least {familiarity[0]:.2f}"
    )


def soak() -> str:
    answers, wrong = (
        row("benchmarks/load/soak.md", name)[0] for name in ("rows answered and compared", "wrong answers")
    )
    memory = "stayed flat" if "memory is flat" in read("benchmarks/load/soak.md") else "grew"
    return f"{answers} answers were compared and {COUNTS[int(wrong)]} was wrong; memory {memory}"


def limits() -> str:
    records = json.loads(read("benchmarks/results.json"))
    met = [r["met"] for r in records if r["name"].startswith("overload: ") and r["target"]]
    return f"{COUNTS[sum(met)]} of {COUNTS[len(met)]} limits"


def later() -> str:
    records = json.loads(read("benchmarks/later/results.json"))
    last = {
        r["style"]: r["difference"]
        for r in records
        if (r["task"], r["method"], r["labels"]) == ("trec", "conditioned", 2000)
    }
    return f"by {last['early']:.3f} and {last['long']:.3f}"


def student() -> str:
    names = ("all labels, cross-fitted", "5 cross-fitted adapters", "student of the 5")
    gains = [row(STUDY, name, after="## In short")[2] for name in names]
    first, five, one = (f"{float(found.rpartition(', -')[2]):.3f}" for found in gains)
    return (
        f"its NLL was {first} nats below temperature scaling's, five adapters' average {five} for five passes, and a "
        f"student of these (`python -m training distil`) {one} for one"
    )


def ten_members() -> str:
    names = ("10 dropout masks", "SWAG, 10 samples", "training-free Bayesian, 10 samples")
    found = [row(STUDY, f"{name} + temperature", after="## In short")[2] for name in names]
    return "with a temperature {}, {} and {} nats".format(
        *(f"{float(cell.rpartition(', ')[2]):+.3f}" for cell in found)
    )


def _orders() -> list[re.Match[str]]:
    cells = row(STUDY, "2 orders of the options + temperature", after="| arc_easy | openbookqa |")
    found = [re.fullmatch(r"-(0\.\d+) \(-(0\.\d+) to -(0\.\d+)\)", cell.strip("*")) for cell in cells]
    return [one for one in found if one]  # ARC-Easy's and OpenBookQA's: no other task has options


def orders() -> str:
    said = [f"by {one[1]} ({one[3]} to {one[2]}) on" for one in _orders()]
    records = [r for r in json.loads(read("docs/results/evidence.json")) if r["budget"] == 450]

    def mean(task: str, method: str) -> Any:
        values = [r["accuracy"] for r in records if (r["task"], r["method"]) == (task, method)]
        return sum(values) / len(values)

    gain = 100 * (mean("openbookqa", "orders_temperature") - mean("openbookqa", "temperature"))
    return f"{said[0]} ARC-Easy and {said[1]} OpenBookQA, and was right {gain:.1f} points more often there"


def orders_in_short() -> str:
    return "{} and {} nats".format(*(one[1] for one in _orders()))


def with_labels() -> str:
    heading = "| 50 | 150 | 450 | 1,000 | 2,000 |"
    names = ("temperature scaling", "temperature, conditioned")
    scaled, conditioned = (row(CURVES, f"NLL, nats | {name}", after=heading) for name in names)
    gains = [f"{float(a.split()[0]) - float(b.split()[0]):.3f}" for a, b in zip(scaled, conditioned, strict=True)]
    return f"by {gains[0]} with 50 labels, {gains[2]} with 450 and {gains[4]} with 2,000"


def epochs() -> str:
    records = json.loads(read("docs/results/reproduction.json"))["records"]
    seeds = [r for r in records if (r["model"], r["task"]) == ("smollm2-135m", "sst2")]

    def from_four(method: str) -> list[str]:
        """Return the mean NLL of the checkpoints from 4 epochs on; an epoch has 50 steps."""
        steps = [step for step in seeds[0]["steps"] if step * seeds[0]["batch_size"] >= 4 * seeds[0]["rows"]["train"]]
        return [f"{fmean(r['checkpoints'][str(step)][method]['nll'] for r in seeds):.3f}" for step in steps]

    plain, scaled, laplace = from_four("map"), sorted(from_four("temperature")), sorted(from_four("laplace"))
    return (
        f"was {plain[0]} after 4 epochs and {plain[-1]} after 10, nearly as often right. With a temperature it stayed "
        f"between {scaled[0]} and {scaled[-1]}, with Laplace between {laplace[0]} and {laplace[-1]}"
    )


if __name__ == "__main__":
    for name in PAGES:
        (ROOT / name).write_text(with_figures(read(name)), encoding="utf-8")
