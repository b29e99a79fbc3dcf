"""Fit the posterior: curvature over the training rows, then the prior precision and the calibrators.

The passes over the training rows are saved as they go, so a job that was stopped continues where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from laplora.fitting.fit import fit_rows
from laplora.fitting.saving import encoder_of, record_of, write_fit
from laplora.predictive.lora_weights import read_weights
from training.calibration.cross_fit import cross_fit_rows
from training.calibration.fold_adapters import FoldAdapter
from training.config import RunConfig
from training.workspace.folds import fold_runs
from training.workspace.provenance import curvature_inputs, fit_inputs
from training.workspace.results import load_trained
from training.workspace.run import Run
from training.workspace.runtime import open_run
from training.workspace.stores import FolderStore, SharedStore, frozen_store
from training.workspace.terminal import Terminal, say


def fit_laplace(config: RunConfig) -> Path:
    """Fit the posterior of a trained run and return its folder; ConfigError where there is no trained adapter.

    A fold's passes are kept in the fold's folder.
    """
    return fit_run(open_run(config.fine_tuned))


def fit_run(run: Run) -> Path:
    """Fit the posterior of an open run; as ``fit_laplace``."""
    config = run.config
    folder = config.run_dir / "laplace"
    model = load_trained(run)
    classifier = run.classifier(model)

    initial = read_weights(model, config.run_dir / "initial_adapter")
    kept = FolderStore(folder, curvature_inputs(run), frozen_store(run))
    store, rows = SharedStore(kept, run.workers), run.splits.train
    if config.calibration.cross_fits:
        adapters = fold_adapters(run, model)
        fit = cross_fit_rows(
            classifier, rows, adapters, run.settings, initial=initial, store=store, progress=Terminal()
        )
    else:
        fit = fit_rows(
            classifier,
            rows,
            run.splits.calibration,
            run.settings,
            initial=initial,
            store=store,
            progress=Terminal(),
        )
    record = record_of(fit, encoder_of(fit))
    run.workers.broadcast(lambda: write_fit(folder, record, fit, {"made_from": fit_inputs(run)}))
    for choice in record.choices:
        say(
            f"prior by {choice.method} ({choice.prior.granularity}): "
            + ", ".join(f"{k} {v:.4g}" for k, v in list(choice.prior.precision.items())[:4])
            + (" (at the edge of the searched range)" if choice.at_bound else "")
        )
    recommended = record.calibrated.recommended
    if record.fine_tuning:
        say(str(record.fine_tuning))
    say(f"served, chosen by the {recommended.chosen_by}: {recommended.reason}")
    return folder


def fold_adapters(run: Run, model: Any) -> list[FoldAdapter]:
    """Return the adapters of a run's folds, in the order of the folds."""
    return [
        FoldAdapter(
            read_weights(model, fold.folder / "adapter"),
            SharedStore(FolderStore(fold.folder / "laplace", curvature_inputs(fold)), run.workers),
        )
        for fold in fold_runs(run)
    ]
