"""Run: every step from a labelled file to an artifact; a step whose result is there is not done again.

Heads on the base as it is come first, and serve at once. A fine-tuned artifact takes their place if one is asked for.
"""

from __future__ import annotations

from pathlib import Path

from laplora.artifact.folder import read_artifact
from laplora.execution.terminal import program
from laplora.fitting.saving import read_fit
from laplora.pool.fine_tuning import worth_trying
from training.config import RunConfig
from training.evaluate import evaluate_run
from training.finetune import finetune_run
from training.fit_laplace import fit_run
from training.frozen import frozen_run
from training.package import package_run
from training.workspace.run import Run
from training.workspace.runtime import open_run
from training.workspace.terminal import say

#: The steps after the frozen fit.
_TUNED = {"fine-tune": finetune_run, "fit": fit_run, "evaluate": evaluate_run, "package": package_run}


def run(config: RunConfig) -> Path:
    """Fit heads, fine-tune if asked for, and return the artifact's folder.

    Rows and tokenizer are loaded once for all steps. Each artifact is loaded by itself.
    """
    opened = open_run(config)
    say(f"[1/{1 + len(_TUNED) if config.fine_tune else 1}] frozen fit")
    result = frozen_run(opened)
    tuned = config.fine_tune if config.fine_tune != "auto" else _worth(opened, result)
    for number, (title, step) in enumerate(_TUNED.items() if tuned else (), 2):
        say(f"[{number}/{1 + len(_TUNED)}] {title}")
        result = step(opened)
    if tuned:
        if gained := read_fit(opened.config.run_dir / "laplace").fine_tuning:
            say(str(gained))
        say(f"serve it: {program()} serve {result}")
    else:
        say("nothing is fine-tuned unless asked for: --set fine_tune=true does, and says what it gained")
    return result


def _worth(opened: Run, artifact: Path) -> bool:
    """Return whether the heads that answer leave an adapter something to gain; what is fine-tuned already stays so."""
    manifest, rows = read_artifact(artifact).manifest, opened.labelled
    if manifest.has_adapter:
        return True
    served = manifest.recommended
    worth, why = worth_trying(served.table[served.predictive]["nll"], [row.label for row in rows if row.label >= 0])
    say(why)
    return worth
