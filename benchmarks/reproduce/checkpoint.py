"""One checkpoint of a fine-tuning: its posterior is fitted, and every method answers the test rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from laplora.classifier import without_adapter
from laplora.features.store import digest, rows_digest
from laplora.files.atomic import write_tensors
from laplora.fitting.calibrate import predictive_of
from laplora.fitting.evaluation import outputs_of
from laplora.fitting.fit import Fit, fit_rows
from laplora.predictive.lora_weights import in_place, lora_parameters, read_weights
from laplora.settings import FitSettings
from training.evaluate import plain_probs
from training.workspace.provenance import adapter_inputs, curvature_inputs
from training.workspace.run import Run
from training.workspace.stores import FolderStore
from training.workspace.terminal import Terminal, say

#: The number of last checkpoints, as in Yang et al.'s comparison of methods (arXiv 2308.13111, section 5.1).
LAST_CHECKPOINTS = 3
DROPOUT_MASKS = 10
#: Laplace under the prior precision that the evidence of the training rows chooses, which is the report's.
EVIDENCE = "laplace_evidence"
#: Method of a posterior over the LoRA matrices of ``lm_head`` alone, the paper's last-layer Laplace.
LAST_LAYER = "laplace_last_layer"

#: Gives the run's base with its adapter; it is called only where something is missing.
Load = Callable[[], Any]


@dataclass(frozen=True)
class Answers:
    """Every method's answers to labelled rows.

    Attributes:
        labels: (rows,) int64; probs: by method (rows, classes) float64.
    """

    labels: torch.Tensor
    probs: Mapping[str, torch.Tensor]


def answers_folder(run_folder: Path, step: int) -> Path:
    """Return where a run's answers of a step lie; 0 is the base without an adapter."""
    return run_folder / "kept" / f"answers-{step}"


@contextmanager
def checkpoint_of(run: Run, model: Any, step: int) -> Iterator[None]:
    """Give the model the weights of a kept step inside the block."""
    with in_place(lora_parameters(model), read_weights(model, run.kept_adapter(step))):
        yield


def answer_checkpoint(run: Run, load: Load, step: int, others: Sequence[int]) -> Answers:
    """Return the answers of a kept step's model to the test rows; they are kept, and so are the fit's passes.

    Args:
        others: further steps, whose models an ensemble averages with this one. Not empty: dropout masks and a posterior
            over ``lm_head`` alone answer too, where the adapter has dropout and adapts it.
    """
    folder, mark = answers_folder(run.folder, step), _mark(run, step, others)
    if (kept := read_answers(folder, mark)) is not None:
        return kept
    model, passes = load(), folder / "passes"
    with checkpoint_of(run, model, step):
        probs = _answers(run, model, step, passes)
        if others:
            probs |= _of_last(run, model, step, passes)
    if others:
        members = [probs["map"]]
        for other in others:
            with checkpoint_of(run, model, other):
                members.append(plain_probs(run.classifier(model), run.splits.test, run.config.laplace.batch_size))
        probs["ensemble"] = torch.stack(members).mean(0)
    shutil.rmtree(passes, ignore_errors=True)
    return _written(run, folder, probs, mark)


def answer_base(run: Run, load: Load) -> Answers:
    """Return what the base without an adapter answers to the test rows, by ``map``; kept."""
    folder, test = answers_folder(run.folder, 0), run.splits.test
    mark = digest(adapter_inputs(run), rows_digest(test))
    if (kept := read_answers(folder, mark)) is not None:
        return kept
    classifier = run.classifier(load())
    with without_adapter(classifier.model):
        probs = plain_probs(classifier, test, run.config.laplace.batch_size)
    return _written(run, folder, {"map": probs}, mark)


def _answers(run: Run, model: Any, step: int, passes: Path) -> dict[str, torch.Tensor]:
    say(f"step {step}: fitting on {len(run.splits.train)} rows")
    store = FolderStore(passes, curvature_inputs(run, run.kept_adapter(step)))
    fit = _fitted(run, model, run.config.fit, store)
    return _of_fit(run, model, fit)


def _of_last(run: Run, model: Any, step: int, passes: Path) -> dict[str, torch.Tensor]:
    """Return the probabilities of the methods that the last checkpoint alone has."""
    probs: dict[str, torch.Tensor] = {}
    if run.config.adapter.dropout:
        probs["mc_dropout"] = _dropout_probs(run, model)
    if "lm_head" in run.config.adapter.targets:
        settings = run.config.fit
        laplace = settings.laplace.model_copy(update={"subset": "regex:lm_head"})
        plain = settings.predictives.model_copy(update={"conditioned": False})
        settings = settings.model_copy(update={"laplace": laplace, "predictives": plain})
        say(f"step {step}: fitting the posterior over lm_head alone")
        mark = digest(curvature_inputs(run, run.kept_adapter(step)), laplace.subset)
        head = _fitted(run, model, settings, FolderStore(passes / "lm_head", mark))
        probs[LAST_LAYER] = _of_fit(run, model, head)["laplace"]
    return probs


def _fitted(run: Run, model: Any, settings: FitSettings, store: FolderStore) -> Fit:
    return fit_rows(
        run.classifier(model),
        run.splits.train,
        run.splits.calibration,
        settings,
        initial=read_weights(model, run.folder / "initial_adapter"),
        store=store,
        progress=Terminal(),
    )


def _of_fit(run: Run, model: Any, fit: Fit) -> dict[str, torch.Tensor]:
    """Return what every predictive of a fit answers to the test rows; familiarity is left out.

    ``EVIDENCE`` comes with them: the same posterior and passes, under the other prior precision.
    """
    fitted = outputs_of(
        run.classifier(model),
        fit.settings.laplace.batch_size,
        fit.posterior,
        fit.served.prior,
        None,
        run.splits.test,
        Terminal(),
        heads=fit.answering,
    )
    outputs = fitted.outputs
    probs = {
        str(method): fitted.predictive(method, record.temperature).probs
        for method, record in fit.calibrated.predictives.items()
    }
    granularity = fit.served.prior.granularity
    evidence = next(c.prior for c in fit.choices if (c.method, c.prior.granularity) == ("evidence", granularity))
    by_evidence = replace(outputs, fitted=replace(outputs.fitted, prior=evidence))
    return {**probs, EVIDENCE: predictive_of(by_evidence, "laplace", 1.0).probs}


def _dropout_probs(run: Run, model: Any) -> torch.Tensor:
    """Return the average over dropout masks (Gal and Ghahramani, arXiv 1506.02142), one draw for every batch."""
    dropouts = [module for module in model.modules() if isinstance(module, torch.nn.Dropout)]
    classifier, total = run.classifier(model), torch.zeros(())
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for _ in range(DROPOUT_MASKS):
            for dropout in dropouts:
                dropout.train()
            total = total + plain_probs(classifier, run.splits.test, run.config.laplace.batch_size)
    model.eval()
    return total / DROPOUT_MASKS


def _mark(run: Run, step: int, others: Sequence[int]) -> str:
    """Return the digest of all that the answers of a step to the test rows were made from."""
    steps = [curvature_inputs(run, run.kept_adapter(one)) for one in (step, *others)]
    settings = run.config.fit.model_dump(mode="json")
    methods = [EVIDENCE, *([LAST_CHECKPOINTS, DROPOUT_MASKS] if others else [])]
    return digest(steps, settings, methods, *(rows_digest(rows) for rows in (run.splits.calibration, run.splits.test)))


def _written(run: Run, folder: Path, probs: Mapping[str, torch.Tensor], mark: str) -> Answers:
    """Return answers to the test rows, after they were written."""
    answers = Answers(torch.tensor([example.label for example in run.splits.test]), probs)
    tensors = {"labels": answers.labels, **{f"probs.{method}": value for method, value in probs.items()}}
    write_tensors(folder / "test.safetensors", tensors, {"made_from": mark})
    return answers


def read_answers(folder: Path, mark: str | None = None) -> Answers | None:
    """Return the answers in a folder; None where there are none, or they were made from something else than a mark."""
    path = folder / "test.safetensors"
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as file:
        if mark is not None and (file.metadata() or {}).get("made_from") != mark:
            return None
    tensors = load_file(path)
    return Answers(tensors.pop("labels"), {key.removeprefix("probs."): value for key, value in tensors.items()})
