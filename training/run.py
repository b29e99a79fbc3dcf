"""Run: every step from a labelled file to an artifact; a step whose result is there is not done again."""

from __future__ import annotations

from pathlib import Path

from training.config import RunConfig
from training.evaluate import evaluate
from training.finetune import finetune
from training.fit_laplace import fit_laplace
from training.package import package
from training.workspace.terminal import say


def run(config: RunConfig) -> Path:
    """Fine-tune, fit, evaluate and package; return the artifact's folder."""
    steps = (("fine-tune", finetune), ("fit", fit_laplace), ("evaluate", evaluate), ("package", package))
    for number, (title, step) in enumerate(steps, 1):
        say(f"[{number}/{len(steps)}] {title}")
        result = step(config)
    say(f"serve it: make serve ARTIFACT={result}")
    return result
