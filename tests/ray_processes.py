"""What processes of Ray Train do in tests; a module of its own, which they can import."""

from __future__ import annotations

import os
import signal
from typing import Any

from laplora.errors import TooManyTokensError
from training.config import RunConfig
from training.fine_tuning.label_trainer import LabelTrainer
from training.finetune import finetune
from training.workspace.launcher import launched_rank


def finetune_and_die(config: RunConfig, batch: int) -> None:
    """Fine-tune until the second process is killed, in its batch of that number, counted from 1."""
    seen, compute = 0, LabelTrainer.compute_loss

    def dying(self: LabelTrainer, *arguments: Any, **options: Any) -> Any:
        nonlocal seen
        seen += 1
        if seen == batch and launched_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(self, *arguments, **options)

    LabelTrainer.compute_loss = dying  # type: ignore[method-assign]
    finetune(config)


def refuse(rank: int) -> None:
    """Raise in that process what laplora raises on purpose, of a class that cannot be pickled; the others wait."""
    if launched_rank() == rank:
        raise TooManyTokensError("the prompt is too long", limit=1, got=2)
    from training.workspace.processes import joined

    joined().wait()
