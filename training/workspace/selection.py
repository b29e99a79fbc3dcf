"""The rows that choose an adapter's step, and which one they chose.

They are split off from the training rows, and neither train nor calibrate. The step of the least loss on them makes
that loss look better than it is, so a threshold or a temperature fitted on them would be too sure.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from laplora.files.atomic import write_json
from training.config import RunConfig
from training.data.examples import Splits
from training.data.splitting import with_selection
from training.workspace.run import Run
from training.workspace.terminal import say

#: The file about the chosen step in a run's folder.
SELECTED = "selected.json"


@dataclass(frozen=True)
class Selected:
    """The step whose adapter was kept.

    Attributes:
        nll: mean of its labels on the selection rows, nats, that of the best of several steps: an optimistic figure.
        rows: selection rows; trained_steps: after which training ended.
    """

    step: int
    nll: float
    rows: int
    trained_steps: int

    def __str__(self) -> str:
        return (
            f"kept the adapter of step {self.step} of {self.trained_steps}: NLL {self.nll:.4f} on {self.rows} rows "
            "that were not trained on"
        )


def split_off(config: RunConfig, splits: Splits) -> Splits:
    """Return the splits with the selection rows taken out of the training rows, where a configuration has some."""
    if config.optimizer.evaluate_every is None:
        return splits
    made = with_selection(splits, config.optimizer.selection_fraction)
    for line in made.report["warnings"][len(splits.report["warnings"]) :]:
        say(f"warning: {line}")
    return made


def write_selected(folder: Path, selected: Selected) -> None:
    """Write which step was chosen into a run's or a fold's folder."""
    write_json(folder / SELECTED, asdict(selected))


def selection_record(run: Run) -> dict[str, Any]:
    """Return what an artifact records under ``data`` of a chosen step; nothing of other runs."""
    if run.config.optimizer.evaluate_every is None:
        return {}
    return {"selected": json.loads((run.folder / SELECTED).read_text(encoding="utf-8"))}
