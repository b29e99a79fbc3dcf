"""brier: no fine-tuning; a head on a hidden state of the frozen base, or a temperature on its label tokens.

The same base model, rows and labels as the default artifact, in bfloat16 as the artifact is served. brier has its
prompt format and loads no 4-bit weights, so its base is the unquantized one. Probabilities of both are scored by the
same code, ``laplora.metrics.scores``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from benchmarks.peers.subject import artifact_rows
from benchmarks.peers.tables import kept
from laplora.metrics.scores import evaluate_probs
from laplora.prompts.examples import Example
from training.data.section import Splits

QUESTION = "Is this review positive or negative?"


def compare(most: int | None = None) -> dict[str, Any]:
    """Return the metrics of brier's levels on the artifact's test rows; ``most``: rows of each split, None for all."""
    splits, location = artifact_rows()
    names = ("train", "calibration", "test")
    rows = replace(splits, **{name: getattr(splits, name)[:most] for name in names})
    return {
        "question": QUESTION,
        "rows": {name: len(getattr(rows, name)) for name in names},
        "brier": brier_levels(rows, location),
    }


def brier_levels(rows: Splits, location: str) -> dict[str, Any]:
    """Return metrics by level.

    ``L0`` and ``L1`` get the calibration rows, as the artifact's temperature does. ``L2`` gets the training rows,
    and then the artifact's whole label budget: it splits its rows itself (five folds) to choose its layer and to
    fit its temperature, so it needs no further calibration rows.
    """
    from brier import Choice, Decider
    from brier.backends import hf

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*loaded without a revision.*")
        backend = hf.HFBackend(location, device="cpu", dtype="bfloat16")
    words = rows.task.labels
    question = Choice(QUESTION, list(words), name="sentiment")
    # Any order of rows gives the same answers; rows of like length in one batch are padded less.
    train, calibration, test = (
        sorted(part, key=lambda e: len(e.fields["text"])) for part in (rows.train, rows.calibration, rows.test)
    )
    labels = torch.tensor([e.label for e in test])
    decider = Decider(backend, max_batch=len(test))
    levels: dict[str, Any] = {}
    begun = time.perf_counter()

    def measure(name: str, level: Any, labelled: int) -> None:
        decisions = decider.decide_batch(texts(test), [question], level)
        probs = torch.tensor([[d["sentiment"].probs[label] for label in words] for d in decisions])
        meta = decisions[0]["sentiment"].meta
        chosen = {key: meta[key] for key in ("layer", "solver", "temperature") if key in meta}
        scores = kept(evaluate_probs(probs.double(), labels).to_json())
        levels[name] = scores | {"labels_used": labelled} | chosen
        print(f"brier {name}: after {time.perf_counter() - begun:.0f} s", flush=True)

    measure("raw", "raw", 0)
    decider.fit_prior(texts(calibration), [question])
    measure("L0", "L0", 0)
    decider.fit_temperature(texts(calibration), question, [words[e.label] for e in calibration])
    measure("L1", "L1", len(calibration))
    for name, labelled in (("L2, training rows", train), ("L2, all rows", [*train, *calibration])):
        decider.fit_head(texts(labelled), question, [words[e.label] for e in labelled])
        measure(name, "L2", len(labelled))
    return levels


def texts(examples: Sequence[Example]) -> list[str]:
    """Return the reviews."""
    return [e.fields["text"] for e in examples]
