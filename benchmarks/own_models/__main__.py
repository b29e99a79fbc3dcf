"""Classifiers that plain PEFT and Trainer made, by ``laplora.fit``, and what their server answers.

    python -m benchmarks.own_models --data FOLDER                # all; some hours
    python -m benchmarks.own_models --data FOLDER --only trec    # the others keep their results
    python -m benchmarks.own_models --tables                     # measures nothing: RESULTS.md again, from results.json

FOLDER holds ``banking77``, ``clinc150`` and ``trec``, each with the files that its authors publish (rows.py names
them); SST-2's rows come from the package index. Models are kept in runs/own-models: a second call does not train.
Nothing here is a time, so a busy machine gives the same figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

import laplora
from benchmarks.harness import provenance
from benchmarks.harness.process import served
from benchmarks.own_models import models, rows
from benchmarks.own_models.page import render

FOLDER = Path(__file__).parent
RESULTS = FOLDER / "results.json"
SCRATCH = provenance.ROOT / "runs" / "own-models"
#: Test rows that the server is asked as well.
_ASKED = 20


@dataclass(frozen=True)
class Case:
    """A task and the model that its owner trained for it, with the settings of that training."""

    title: str
    rows: Callable[[Path], rows.Rows]
    model: Callable[[Path, rows.Rows], tuple[Any, Any]]
    encode: Callable[[Any, Any, rows.Rows], Sequence[Any]]
    template: str
    epochs: int
    rate: float


_HEAD = (models.headed, models.questions, "{text}")
CASES: Mapping[str, Case] = {
    "sst2": Case("SST-2: label tokens", rows.sst2, models.causal, models.sentences, models.PROMPT, 3, 1e-3),
    "trec": Case("TREC, 6 labels: an encoder's head", rows.trec, models.encoder, models.questions, "{text}", 2, 2e-3),
    "banking77": Case("Banking77, 77 labels: a head", rows.banking77, *_HEAD, 5, 1e-3),
    "clinc150": Case("CLINC150, 150 labels: a head", rows.clinc150, *_HEAD, 3, 1e-3),
    "domains": Case("CLINC150's domains, several of 10 a row: a head", rows.clinc_domains, *_HEAD, 4, 1e-3),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen cases; those not chosen keep their results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.own_models",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data", type=Path, help="folder with the data sets")
    parser.add_argument("--only", choices=list(CASES), nargs="+", help="these cases alone")
    parser.add_argument("--tables", action="store_true", help="measure nothing, write the page again")
    options = parser.parse_args(arguments)
    chosen = [] if options.tables else options.only or list(CASES)
    if set(chosen) - {"sst2"} and options.data is None:
        parser.error("--data FOLDER is needed for every case but sst2")
    torch.set_num_threads(1)
    for name in chosen:
        print(f"{name} ...", flush=True)
        begun = {"date": provenance.today(), "commit": provenance.commit()}
        result = measure(CASES[name], options.data or Path(), SCRATCH / name)
        found = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
        found[name] = {"title": CASES[name].title, "measured": begun, **result}
        kept = {key: found[key] for key in CASES if key in found}
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    (FOLDER / "RESULTS.md").write_text(render(json.loads(RESULTS.read_text())))


def measure(case: Case, data: Path, folder: Path) -> Mapping[str, Any]:
    """Return a case's metrics, and how far its server's answers lie from those in memory."""
    given = case.rows(data)
    model, tokenizer = case.model(folder, given)
    if not (folder / models.ADAPTER).is_dir():
        encoded = case.encode(model, tokenizer, given)
        models.train(model, tokenizer, encoded, folder, epochs=case.epochs, rate=case.rate)
        model.save_pretrained(folder / models.ADAPTER)
    classifier = laplora.Classifier(model, tokenizer, given.labels, case.template, max_tokens=models.MAX_TOKENS)
    settings = laplora.FitSettings.model_validate({"laplace": {"batch_size": 16}})
    posterior = laplora.fit(classifier, given.train, given.calibration, settings=settings, progress=_Lines())
    measured = posterior.evaluate(given.test)
    print(measured, flush=True)
    artifact = posterior.save(folder / "artifact", verify=False)
    return {
        "rows": {"train": len(given.train), "calibration": len(given.calibration), "test": len(given.test)},
        "epochs": case.epochs,
        "recommended": measured.recommended,
        "prior": dict(posterior.fit.served.prior.precision),
        "temperatures": {n: round(r.temperature, 3) for n, r in posterior.fit.calibrated.predictives.items()},
        "predictives": {name: _figures(measured, name) for name in measured.evaluations},
        "decisions": _decisions(posterior, given),
        "served": _ask(artifact, posterior, given.test[:_ASKED]),
    }


def _figures(measured: laplora.Measured, name: str) -> Mapping[str, Any]:
    metrics = measured.to_json()[name]
    names = ("accuracy", "nll", "ece", "brier", "auroc_error", "intervals", "sets")
    return {key: metrics[key] for key in names}


def _decisions(posterior: laplora.CalibratedPosterior, given: rows.Rows) -> Mapping[str, int]:
    """Return how many test rows are accepted at the default target risk, and how many of their answers are wrong.

    Where several labels may be right, each label of an accepted row is an answer.
    """
    accepted = answers = wrong = 0
    for row, answer in zip(given.test, posterior.predict([{"text": row["text"]} for row in given.test]), strict=True):
        if answer.decision != "accept":
            continue
        accepted += 1
        if answer.labels_present is None:
            answers += 1
            wrong += answer.labels[answer.label_index] != row["label"]
        else:
            answers += len(given.labels)
            wrong += len(set(answer.labels_present) ^ set(row["label"]))
    return {"accepted": accepted, "answers": answers, "wrong": wrong}


def _ask(artifact: Path, posterior: laplora.CalibratedPosterior, test: Sequence[rows.Row]) -> Mapping[str, Any]:
    """Return how far answers over HTTP lie from those of the posterior in memory, each row asked alone."""
    inputs = [{"text": row["text"]} for row in test]
    compared: dict[str, Any] = {"rows": len(inputs)}
    with served(artifact=artifact) as address, httpx.Client(base_url=address, timeout=600) as client:
        for predictive in dict.fromkeys((posterior.recommended, "laplace")):
            worst, alike = 0.0, True
            for given, mine in zip(inputs, posterior.predict(inputs, predictive), strict=True):
                body = {"inputs": [given], "options": {"predictive": predictive, "truncate": True}}
                (theirs,) = client.post("/predict", json=body).raise_for_status().json()["predictions"]
                for field in ("probs", "map_probs"):
                    pairs = zip(theirs[field].values(), getattr(mine, field), strict=True)
                    worst = max(worst, *(abs(a - b) for a, b in pairs))
                alike &= (theirs["decision"], theirs["prediction_set"]) == (mine.decision, mine.prediction_set)
            compared[predictive] = {"largest_difference": worst, "decisions_and_sets_alike": alike}
    return compared


class _Lines:
    """Progress as lines of a log."""

    def say(self, message: str) -> None:
        print(message, flush=True)

    def track(self, items: Sequence[Any], title: str) -> Any:
        for index, item in enumerate(items):
            if index % 20 == 0:
                print(f"{title}: {index} of {len(items)}", flush=True)
            yield item


if __name__ == "__main__":
    main(sys.argv[1:])
