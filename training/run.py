"""Run: every step from a labelled file to an artifact; a step whose result is there is not done again."""

from __future__ import annotations

from pathlib import Path

from training.config import RunConfig
from training.evaluate import evaluate_run
from training.fine_tuning.reporters import check_reporters
from training.finetune import finetune_run
from training.fit_laplace import fit_run
from training.package import package_run
from training.workspace.runtime import open_run
from training.workspace.terminal import say


def run(config: RunConfig) -> Path:
    """Fine-tune, fit, evaluate and package; return the artifact's folder.

    Rows, tokenizer and base model are loaded once for all steps. The packaged artifact is loaded by itself.
    """
    check_reporters(config.report_to)
    steps = (("fine-tune", finetune_run), ("fit", fit_run), ("evaluate", evaluate_run), ("package", package_run))
    opened = open_run(config)
    for number, (title, step) in enumerate(steps, 1):
        say(f"[{number}/{len(steps)}] {title}")
        result = step(opened)
    say(f"serve it: make serve ARTIFACT={result}")
    return result
