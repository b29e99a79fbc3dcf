"""One checkpoint of a fine-tuning: its posterior is fitted, and every method answers the test rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from laplora.classifier import without_adapter
from laplora.files import write_tensors
from laplora.fitting.calibrate import predictive_of
from laplora.fitting.conditioning import shifts_of
from laplora.fitting.evaluation import outputs_of
from laplora.fitting.fit import Fit, fit_rows
from laplora.fitting.members import MemberAdapter
from laplora.fitting.settings import FitSettings
from laplora.fitting.store import FolderStore, digest, rows_digest
from laplora.predictive.member_adapters import in_place, lora_parameters, read_weights
from laplora.prompts.examples import Example
from training.evaluate import plain_probs
from training.workspace.members import kept_adapter
from training.workspace.provenance import adapter_inputs, curvature_inputs
from training.workspace.run import Run
from training.workspace.terminal import Terminal, say

#: Of the last checkpoint, as in Yang et al.'s comparison of methods (arXiv 2308.13111, section 5.1).
LAST_CHECKPOINTS = 3
DROPOUT_MASKS = 10
#: Method of a posterior over the LoRA matrices of ``lm_head`` alone, the paper's last-layer Laplace.
LAST_LAYER = "laplace_last_layer"
#: Name of the run's test rows among the sets of rows.
TEST = "test"

#: Class probabilities by method, (rows, classes) float64.
Probs = Mapping[str, torch.Tensor]
#: Gives the run's base with its adapter; it is called only where something is missing.
Load = Callable[[], Any]


@dataclass(frozen=True)
class Answers:
    """Every method's answers to labelled rows.

    Attributes:
        labels: (rows,) int64; probs: by method.
    """

    labels: torch.Tensor
    probs: Probs


def answers_folder(run_folder: Path, step: int) -> Path:
    """Return where a run's answers of a step lie; 0 is the base without an adapter."""
    return run_folder / "kept" / f"answers-{step}"


@contextmanager
def checkpoint_of(run: Run, model: Any, step: int) -> Iterator[None]:
    """Give the model the weights of a kept step inside the block."""
    with in_place(lora_parameters(model), read_weights(model, kept_adapter(run, step))):
        yield


def answer_checkpoint(
    run: Run, load: Load, step: int, others: Sequence[int], sets: Mapping[str, Sequence[Example]]
) -> dict[str, Answers]:
    """Return the answers of a kept step's model to sets of rows, by set; they are kept, and so are the fit's passes.

    Args:
        others: further steps, whose models an ensemble averages with this one. Not empty: dropout masks and a posterior
            over ``lm_head`` alone answer too, where the adapter has dropout and adapts it.
    """
    folder = answers_folder(run.folder, step)
    marks = {name: _mark(run, step, others, rows) for name, rows in sets.items()}
    kept = {name: read_answers(folder / f"{name}.safetensors", mark) for name, mark in marks.items()}
    found = {name: answers for name, answers in kept.items() if answers is not None}
    if missing := {name: rows for name, rows in sets.items() if name not in found}:
        model = load()
        with checkpoint_of(run, model, step):
            made = _answers(run, model, step, others, missing, folder)
        for name, answers in made.items():
            tensors = {"labels": answers.labels, **{f"probs.{method}": p for method, p in answers.probs.items()}}
            write_tensors(folder / f"{name}.safetensors", tensors, {"made_from": marks[name]})
        shutil.rmtree(folder / "passes", ignore_errors=True)
        found |= made
    return {name: found[name] for name in sets}


def answer_base(run: Run, load: Load) -> Answers:
    """Return what the base without an adapter answers to the test rows, by ``map``; kept."""
    path, test = answers_folder(run.folder, 0) / f"{TEST}.safetensors", run.splits.test
    mark = digest(adapter_inputs(run), rows_digest(test))
    if (kept := read_answers(path, mark)) is not None:
        return kept
    model = load()
    classifier = run.classifier(model)
    with without_adapter(model):
        probs = plain_probs(classifier, test, run.config.laplace.batch_size)
    answers = Answers(torch.tensor([example.label for example in test]), {"map": probs})
    write_tensors(path, {"labels": answers.labels, "probs.map": probs}, {"made_from": mark})
    return answers


def _answers(
    run: Run, model: Any, step: int, others: Sequence[int], sets: Mapping[str, Sequence[Example]], folder: Path
) -> dict[str, Answers]:
    settings, adapter = run.config.fit, run.config.adapter
    mark = curvature_inputs(run, kept_adapter(run, step))
    members = tuple(MemberAdapter(other, read_weights(model, kept_adapter(run, other))) for other in others)
    if members:
        masks = DROPOUT_MASKS if adapter.dropout else 0
        settings = _with_predictives(settings, ensemble=len(members) + 1, mc_dropout=masks)
    say(f"step {step}: fitting on {len(run.splits.train)} rows")
    fit = _fitted(run, model, settings, members, FolderStore(folder / "passes", mark))
    found = {name: _of_fit(run, model, fit, rows, name) for name, rows in sets.items()}
    if members and "lm_head" in adapter.targets:
        laplace = settings.laplace.model_copy(update={"subset": "regex:lm_head"})
        last = _with_predictives(settings, ensemble=0, mc_dropout=0, conditioned=False)
        last = last.model_copy(update={"laplace": laplace})
        store = FolderStore(folder / "passes" / "lm_head", digest(mark, laplace.subset))
        say(f"step {step}: fitting the posterior over lm_head alone")
        head = _fitted(run, model, last, (), store)
        for name, rows in sets.items():
            probs = _of_fit(run, model, head, rows, name).probs["laplace"]
            found[name] = Answers(found[name].labels, {**found[name].probs, LAST_LAYER: probs})
    return found


def _with_predictives(settings: FitSettings, **fields: Any) -> FitSettings:
    return settings.model_copy(update={"predictives": settings.predictives.model_copy(update=fields)})


def _fitted(run: Run, model: Any, settings: FitSettings, members: tuple[MemberAdapter, ...], store: FolderStore) -> Fit:
    return fit_rows(
        run.classifier(model),
        run.splits.train,
        run.splits.calibration,
        settings,
        initial=read_weights(model, run.folder / "initial_adapter"),
        adapters=members,
        store=store,
        progress=Terminal(),
    )


def _of_fit(run: Run, model: Any, fit: Fit, rows: Sequence[Example], name: str) -> Answers:
    """Return what every predictive of a fit answers; familiarity widens and flags, and is left out here."""
    outputs = outputs_of(
        run.classifier(model),
        fit.settings,
        fit.posterior,
        fit.served.prior,
        fit.ensemble,
        None,
        shifts_of(fit.conditioned),
        None,
        rows,
        Terminal(),
        f"{name} rows",
    ).outputs
    probs: dict[str, torch.Tensor] = {
        method: predictive_of(outputs, method, record.temperature).probs
        for method, record in fit.calibrated.predictives.items()
    }
    return Answers(outputs.split.labels, probs)


def _mark(run: Run, step: int, others: Sequence[int], rows: Sequence[Example]) -> str:
    """Return the digest of all that the answers of a step to some rows were made from."""
    steps = [curvature_inputs(run, kept_adapter(run, one)) for one in (step, *others)]
    settings = run.config.fit.model_dump(mode="json")
    methods = [LAST_CHECKPOINTS, DROPOUT_MASKS] if others else []
    return digest(steps, settings, methods, rows_digest(run.splits.calibration), rows_digest(rows))


def read_answers(path: Path, mark: str | None = None) -> Answers | None:
    """Return the answers in a file; None where it is not there, or was made from something else than a mark says."""
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if mark is not None and (file.metadata() or {}).get("made_from") != mark:
            return None
    tensors = load_file(path)
    return Answers(tensors.pop("labels"), {key.removeprefix("probs."): value for key, value in tensors.items()})
