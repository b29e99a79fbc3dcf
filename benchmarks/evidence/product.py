"""The product's own fit of a fine-tuned adapter: Laplace over its weights, heads beside it, and what it then serves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import set_seed

from benchmarks.evidence.adapters import load_classifier, put, take
from benchmarks.evidence.given import Given, to_a_person
from benchmarks.evidence.scores import Answers
from laplora.execution.progress import Silent
from laplora.experts.base import Outputs
from laplora.features.store import FROZEN_PASSES, Forgetful, Kept
from laplora.fitting.adapted_experts import outputs_of_split
from laplora.fitting.familiarity import familiar_layers
from laplora.fitting.fit import Fit, fit_rows
from laplora.fitting.projected import Fitted, SplitOutputs, project_split
from laplora.settings import ExpertSettings, FitSettings, LaplaceSettings

_SILENT = Silent()


@dataclass(frozen=True)
class _Kept(Forgetful):
    """Gives a fit the passes of its heads, which are made already.

    Attributes:
        outputs: of the labelled rows.
    """

    outputs: Outputs

    def read(self, name: str, made_from: str = "") -> Kept | None:
        """Return the passes; nothing else is kept."""
        if name != FROZEN_PASSES:
            return None
        tensors = {"class_mask": self.outputs.class_mask}
        for source, blocks in self.outputs.features.items():
            if source != "last_state":
                tensors |= {f"features/{source}/{block}": each for block, each in blocks.items()}
        return tensors, {}


def fine_tuned_product(name: str) -> Callable[[Given], Answers]:
    """Return the method that answers by a predictive of the product's fit; ``served``: by the one that it chose."""

    def answers(given: Given) -> Answers:
        names = tuple(source for source in given.outputs.features if source != "last_state")
        settings = FitSettings(seed=given.seed, experts=ExpertSettings(names=names))  # type: ignore[arg-type]
        (fit, test, unlike), seconds = given.once("product", lambda: _fitted(given, settings))
        chosen = str(fit.calibrated.recommended.predictive) if name == "served" else name
        return _answered(given, fit, test, unlike if name == "served" else None, chosen, seconds)

    return answers


def last_layer(given: Given) -> Answers:
    """Return the answers of Laplace over the last layer's matrices alone."""
    settings = FitSettings(seed=given.seed, laplace=LaplaceSettings(subset="last_layer"))
    fit, test, _ = _fitted(given, settings)
    return _answered(given, fit, test, None, "laplace", 0.0)


def _fitted(given: Given, settings: FitSettings) -> tuple[Fit, Outputs, torch.Tensor | None]:
    """Return a fit, what its experts read of the test rows, and which of these are unlike the rows that trained."""
    cell, first = given.of_cell.cell, len(given.of_cell.rows.train)
    set_seed(given.seed)
    classifier = load_classifier(cell.task, cell.training.base)
    initial: Mapping[str, torch.Tensor] = take(classifier)  # the adapter's training began there
    put(classifier, load_file(cell.adapters / "early.safetensors"))
    classifier.model.eval()
    rows = given.rows
    fit = fit_rows(classifier, rows[:first], rows[first:], settings, initial=initial, store=_Kept(given.outputs))
    layers = familiar_layers(classifier, fit.settings)
    tokens = classifier.ending_tokens
    split = project_split(classifier, fit.posterior, given.test_rows, _SILENT, "", layers=layers, tokens=tokens)
    fitted = Fitted(fit.posterior, fit.served.prior, split.projected)
    read = outputs_of_split(SplitOutputs(split, fitted), covariance=True)
    features: Any = {**given.test.features, **read.features}
    unlike = None
    if fit.familiar is not None and split.states is not None:
        unlike = fit.familiar.familiarity.of(split.states) <= fit.familiar.record.false_alarms
    return fit, Outputs(read.class_mask, read.log_probs, features, read.covariance), unlike


def _answered(given: Given, fit: Fit, test: Outputs, unlike: torch.Tensor | None, name: str, seconds: float) -> Answers:
    expert = fit.experts["adapter" if name == "map" else name]
    held_out = torch.full_like(given.outputs.log_probs["adapter"], torch.nan)
    held_out[-len(expert.held_out) :] = expert.held_out
    entropies = given.spread(fit.scores[name].score)  # type: ignore[index]
    answers = expert.log_probs(test)
    return Answers(held_out, answers, entropies, to_a_person(answers, unlike), seconds)
