"""brier: no fine-tuning; a head on a hidden state of the frozen base, or a temperature on its label tokens.

The same base model, rows and labels as the default artifact, in bfloat16 as the artifact is served. brier asks in
its own words (its prompt format is part of it) and loads no 4-bit weights, so its base is the unquantized one.
Probabilities of both are scored by the same code, ``laplora.metrics.scores``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from benchmarks.peers.subject import Sst2, artifact_rows
from benchmarks.peers.tables import kept
from laplora.metrics.scores import evaluate_probs
from training.data.examples import Example

QUESTION = "Is this review positive or negative?"


def compare(most: int | None = None) -> dict[str, Any]:
    """Return the metrics of brier's levels on the artifact's test rows.

    Args:
        most: rows of each split that are used; by default all.
    """
    every = artifact_rows()
    rows = replace(every, train=every.train[:most], calibration=every.calibration[:most], test=every.test[:most])
    return {
        "question": QUESTION,
        "rows": {"train": len(rows.train), "calibration": len(rows.calibration), "test": len(rows.test)},
        "brier": brier_levels(rows),
    }


class RememberingBackend:
    """A brier backend that runs each prompt once: its levels ask for the same forward passes again and again.

    Hidden states are kept of every candidate layer, whichever are asked for.
    """

    def __init__(self, backend: Any, layers: Sequence[int]) -> None:
        self._backend = backend
        self._layers = list(layers)
        self._logprobs: dict[tuple[str, tuple[int, ...]], Any] = {}
        self._hidden: dict[str, Any] = {}
        self.model_id, self.revision, self.num_layers = backend.model_id, backend.revision, backend.num_layers

    def label_token_ids(self, labels: Sequence[str]) -> list[int]:
        """Return the token id of each label."""
        found: list[int] = self._backend.label_token_ids(labels)
        return found

    def label_logprobs(self, prompts: Sequence[str], token_ids: Sequence[int]) -> Any:
        """Return log-probabilities (prompts, labels)."""
        ids = tuple(token_ids)
        new = [p for p in dict.fromkeys(prompts) if (p, ids) not in self._logprobs]
        for prompt, row in zip(new, self._backend.label_logprobs(new, token_ids), strict=True):
            self._logprobs[prompt, ids] = row
        return np.stack([self._logprobs[p, ids] for p in prompts])

    def hidden_states(self, prompts: Sequence[str], layers: Sequence[int]) -> Any:
        """Return hidden states (prompts, layers, width)."""
        new = [p for p in dict.fromkeys(prompts) if p not in self._hidden]
        if new:
            for prompt, state in zip(new, self._backend.hidden_states(new, self._layers), strict=True):
                self._hidden[prompt] = state
        where = [self._layers.index(layer) for layer in layers]
        return np.stack([self._hidden[p][where] for p in prompts])


def brier_levels(rows: Sst2) -> dict[str, Any]:
    """Return metrics by level.

    ``L0`` and ``L1`` get the calibration rows, as the artifact's temperature does. ``L2`` gets the training rows,
    and then the artifact's whole label budget: it splits its rows itself (five folds) to choose its layer and to
    fit its temperature, so it needs no calibration rows of its own.
    """
    from brier import Choice, Decider
    from brier.backends.hf import HFBackend
    from brier.heads.select import default_layers

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*loaded without a revision.*")
        backend = HFBackend(rows.location, device="cpu", dtype="bfloat16")
    question = Choice(QUESTION, list(rows.labels), name="sentiment")
    # Any order of rows gives the same answers; rows of like length in one batch are padded less.
    train, calibration, test = (
        sorted(part, key=lambda e: len(e.fields["text"])) for part in (rows.train, rows.calibration, rows.test)
    )
    labels = torch.tensor([e.label for e in test])
    decider = Decider(RememberingBackend(backend, default_layers(backend.num_layers)), max_batch=len(test))
    found: dict[str, Any] = {}
    begun = time.perf_counter()

    def measure(name: str, level: Any, labelled: int) -> None:
        nonlocal begun
        decisions = decider.decide_batch(texts(test), [question], level)
        probs = torch.tensor([[d["sentiment"].probs[label] for label in rows.labels] for d in decisions])
        told = decisions[0]["sentiment"].meta
        chosen = {key: told[key] for key in ("layer", "solver", "temperature") if key in told}
        found[name] = scores(probs, labels) | {"labels_used": labelled} | chosen
        print(f"brier {name}: {time.perf_counter() - begun:.0f} s", flush=True)
        begun = time.perf_counter()

    measure("raw", "raw", 0)
    decider.fit_prior(texts(calibration), [question])
    measure("L0", "L0", 0)
    decider.fit_temperature(texts(calibration), question, words(rows, calibration))
    measure("L1", "L1", len(calibration))
    for name, labelled in (("L2, training rows", train), ("L2, all rows", [*train, *calibration])):
        decider.fit_head(texts(labelled), question, words(rows, labelled))
        measure(name, "L2", len(labelled))
    return found


def scores(probs: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    """Return the metrics of class probabilities (rows, classes), with bootstrap intervals."""
    return kept(evaluate_probs(probs.double(), labels).to_json())


def texts(examples: Sequence[Example]) -> list[str]:
    """Return the reviews."""
    return [e.fields["text"] for e in examples]


def words(rows: Sst2, examples: Sequence[Example]) -> list[str]:
    """Return the labels as brier takes them: the option's text."""
    return [rows.labels[e.label] for e in examples]
