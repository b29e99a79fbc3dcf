"""Fine-tunings that several processes share, on a tiny model.

Run as a program it goes through ``PLANS`` in one start of Python: it imports once, and forks before any computation.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from free_ports import free_port
from shared_fits import forked
from tiny_runs import sentiment_config

from laplora.models.adapters import save_adapter
from training.__main__ import main as job
from training.fine_tuning import label_trainer
from training.fine_tuning.label_trainer import LabelTrainer

SELECTING = {"learning_rate": 1e-2, "steps": 16, "batch_size": 6, "evaluate_every": 4, "selection_fraction": 0.25}
#: One row a batch: the second of two processes never has one.
ROW_BY_ROW = {"learning_rate": 1e-2, "steps": 8, "batch_size": 1, "gradient_accumulation": 5, "checkpoint_every": 8}
ROW_BY_ROW |= {"group_by_length": True, "loraplus_lr_ratio": 4.0}


@dataclass(frozen=True)
class Plan:
    """Some processes that fine-tune in a folder.

    Attributes:
        dies_at: batch in which the last one dies, counted from 1.
    """

    folder: str
    count: int
    optimizer: dict[str, Any] = field(default_factory=lambda: SELECTING)
    dies_at: int | None = None


PLANS = (
    Plan("one", 1),
    Plan("two", 2, dies_at=10),  # between two checkpoints
    Plan("two", 2),
    Plan("one-row-by-row", 1, ROW_BY_ROW),
    Plan("two-row-by-row", 2, ROW_BY_ROW),
)


def _one(port: int, root: Path, plan: Plan, logs: Path, rank: int) -> int:
    with Path(f"{logs}-{rank}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": plan.count, "MASTER_PORT": port}
    if plan.count > 1:
        os.environ |= {name: str(value) for name, value in places.items()} | {"MASTER_ADDR": "127.0.0.1"}
    label_trainer.save_adapter = told_of
    if plan.dies_at is not None and rank == plan.count - 1:
        seen, compute = 0, LabelTrainer.compute_loss

        def dying(self: LabelTrainer, *arguments: Any, **options: Any) -> Any:
            nonlocal seen
            seen += 1
            if seen == plan.dies_at:
                os._exit(9)
            return compute(self, *arguments, **options)

        LabelTrainer.compute_loss = dying  # type: ignore[method-assign]
    return job(["finetune", "--config", str(root / plan.folder / "sentiment.yaml")])


def told_of(model: Any, folder: Path, **options: Any) -> None:
    """Write a checkpoint's adapter and say so: the tests read who did."""
    print(f"writes {folder.name}", flush=True)  # noqa: T201
    save_adapter(model, folder, **options)


def main(root: Path, base: Path) -> int:
    """Go through the plans, each process a fork; their exit statuses are in ``<number>.statuses``."""
    for number, plan in enumerate(PLANS):
        folder = root / plan.folder
        if not folder.exists():
            folder.mkdir()
            sentiment_config(folder, base, optimizer=plan.optimizer)
        statuses = forked(plan.count, partial(_one, free_port(), root, plan, folder / str(number)))
        (root / f"{number}.statuses").write_text(" ".join(map(str, statuses)))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
