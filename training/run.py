"""Run: every step from a labelled file to an artifact; a step whose result is there is not done again.

Heads on the base as it is come first, and serve at once. A fine-tuned artifact takes their place if one is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from laplora.execution.terminal import program
from laplora.fitting.saving import read_fit
from training.config import RunConfig
from training.evaluate import evaluate_run
from training.fine_tuning.reporters import check_reporters
from training.finetune import finetune_run
from training.fit_laplace import fit_run
from training.frozen import frozen_run
from training.package import package_run
from training.workspace.run import Run
from training.workspace.runtime import open_run
from training.workspace.terminal import say


def run(config: RunConfig) -> Path:
    """Fit heads, fine-tune if asked for, and return the artifact's folder.

    Rows and tokenizer are loaded once for all steps. Each artifact is loaded by itself.
    """
    check_reporters(config.report_to)
    steps: list[tuple[str, Callable[[Run], Path]]] = [("frozen fit", frozen_run)]
    if config.fine_tune:
        steps += [("fine-tune", finetune_run), ("fit", fit_run), ("evaluate", evaluate_run), ("package", package_run)]
    opened = open_run(config)
    for number, (title, step) in enumerate(steps, 1):
        say(f"[{number}/{len(steps)}] {title}")
        result = step(opened)
    if config.fine_tune:
        if gained := read_fit(opened.config.run_dir / "laplace").fine_tuning:
            say(str(gained))
        say(f"serve it: {program()} serve {result}")
    else:
        say("nothing is fine-tuned unless asked for: --set fine_tune=true does, and says what it gained")
    return result
