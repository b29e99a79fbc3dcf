"""The folds of a run that trains on all labels: each is a run of its own, without the fold's rows, in its own folder.

Their adapters calibrate. Fold membership is that of ``laplora.predictive.cross_fitting``.
"""

from __future__ import annotations

from dataclasses import replace

from laplora.predictive.cross_fitting import fold_rows
from laplora.prompts.groups import row_groups
from training.config import RunConfig
from training.workspace.run import Run


def fold_runs(run: Run) -> list[Run]:
    """Return a run for each fold, trained on the other folds' rows and calibrated on its own; none without folds.

    It has as many epochs as the run that is served, and the same seed, so that it begins at the same adapter.
    """
    config, rows = run.config, run.splits.train
    if not config.calibration.cross_fits:
        return []
    runs = []
    groups = row_groups(run.splits.task.template, run.splits.task.labels, rows)
    for number, (fit, held_out) in enumerate(fold_rows(len(rows), config.calibration.folds, config.seed, groups)):
        splits = replace(
            run.splits,
            train=tuple(rows[i] for i in fit.tolist()),
            calibration=tuple(rows[i] for i in held_out.tolist()),
        )
        fold_config = scaled(config, len(fit) / len(rows))
        runs.append(replace(run, config=fold_config, splits=splits, own_folder=config.run_dir / "folds" / str(number)))
    return runs


def scaled(config: RunConfig, share: float) -> RunConfig:
    """Return the configuration whose steps are a share of the run's, for as many epochs over as large a share of rows.

    A fold's configuration holds out, as it would of a run by itself.
    """
    optimizer, calibration = config.optimizer, config.calibration
    steps = {
        "steps": max(1, round(optimizer.step_count * share)),
        "warmup_steps": round(optimizer.warmup_steps * share),
    }
    return config.model_copy(
        update={
            "optimizer": optimizer.model_copy(update=steps),
            "calibration": calibration.model_copy(update={"rows": "held_out"}),
        }
    )
