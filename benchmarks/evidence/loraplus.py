"""LoRA+ (arXiv 2402.12354) beside plain LoRA, on tasks that the study does not report on.

    python -m benchmarks.evidence.loraplus --data FOLDER     # two hours of one core; what is kept goes on

Each adapter has a temperature, fitted on 150 other rows. Written is docs/results/loraplus.json.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.evidence.adapters import RATE, put, train
from benchmarks.evidence.calibrators import tempered
from benchmarks.evidence.cells import Cell
from benchmarks.evidence.passes import adapted
from benchmarks.evidence.plan import SEEDS, unreported
from benchmarks.harness.provenance import ROOT
from laplora.files.atomic import write_json
from laplora.linearised import class_log_probs
from laplora.metrics.scores import row_nll
from laplora.prompts.examples import label_tensor

RESULTS = ROOT / "docs" / "results" / "loraplus.json"
TASKS = ("irony", "trec")
#: The learning rate of all weights, and of every lora_B.
RATES = {"plain": (RATE, RATE), "x16": (RATE, 16 * RATE), "x16 quarter": (RATE / 4, 4 * RATE)}
_CALIBRATION = 150


def measured(task: str, seed: int, how: str, data: Path, folder: Path) -> dict[str, str | int | float]:
    """Return the NLL and accuracy of one adapter on the test rows; kept ones are read."""
    kept = folder / f"{task}.{seed}.{how}.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    cell = Cell(unreported(task, seed), folder)
    rows = cell.rows(data)
    weights = kept.with_suffix("")
    weights.mkdir(parents=True, exist_ok=True)
    classifier = train(cell.task, rows.train, seed, weights, print, rates=RATES[how])
    put(classifier, load_file(weights / "early.safetensors"))  # a training that ended before is not begun again
    passed = [adapted(classifier, part) for part in (rows.pool[:_CALIBRATION], rows.test)]
    calibration, test = (class_log_probs(one["logits"], one["class_mask"]) for one in passed)
    labels, right = (label_tensor(part, len(cell.task.labels)) for part in (rows.pool[:_CALIBRATION], rows.test))
    answers = tempered(calibration, labels)(test)
    accuracy = float((answers.argmax(1) == right).double().mean())
    nll = float(row_nll(answers.exp(), right).mean())
    record: dict[str, str | int | float] = {"task": task, "seed": seed, "tag": how, "nll": nll, "accuracy": accuracy}
    write_json(kept, record)
    return record


def main() -> None:
    """Measure what is not kept, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets, as of the study")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "loraplus", help="where adapters are kept")
    options = parser.parse_args()
    torch.set_num_threads(1)
    each = [(task, seed, how) for task in TASKS for seed in SEEDS for how in RATES]
    write_json(RESULTS, [measured(*one, options.data, options.runs) for one in each])


if __name__ == "__main__":
    main()
