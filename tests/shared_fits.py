"""Fits that several processes share, of a tiny model that each of them loads.

Run as a program it goes through ``PLANS`` in one start of Python: it imports once, and forks before any computation.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import AutoModelForCausalLM, AutoTokenizer

import laplora
from laplora.errors import ConfigError
from laplora.execution.progress import Silent
from laplora.execution.workers import ALONE, Workers
from laplora.features.store import Forgetful, Kept
from laplora.fitting import passes
from laplora.fitting.passes import fit_curvature
from laplora.fitting.projected import project_split
from laplora.fitting.rows import read_rows
from laplora.jacobians.contrasts import covered_blocks
from laplora.posterior.base import Prior, block_precisions
from laplora.settings import FitSettings
from training.workspace.stores import SharedStore

LABELS = ("bill", "card", "app", "loan", "other")
STRUCTURES = ("joint_core", "ekfac", "kfac_reduce")
#: Structures whose fit is stopped in a pass and continued by more processes.
CONTINUED = ("joint_core", "ekfac")
#: In batches of two that is seven batches: the last one is of one row, and the last round has no batch for some.
ROWS = 13
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Plan:
    """How many processes fit which structures, and whether from what one process kept after its first batch."""

    name: str
    count: int
    structures: tuple[str, ...] = STRUCTURES
    continued: bool = False


PLANS = (Plan("one", 1), Plan("two", 2), Plan("four", 4), Plan("continued", 2, CONTINUED, continued=True))


class Notes(Forgetful):
    """Remembers all that was written, and reads what it was made with."""

    def __init__(self, kept: dict[str, Kept] | None) -> None:
        self.kept, self.written = kept or {}, dict[str, list[Kept]]()

    def read(self, name: str, made_from: str = "") -> Kept | None:
        """Return what it was made with under a name."""
        return self.kept.get(name)

    def write(self, name: str, tensors: Any, notes: Any, made_from: str = "") -> None:
        """Note it."""
        self.written.setdefault(name, []).append((dict(tensors), dict(notes)))


def classifier_of(base: Path, workers: Workers) -> laplora.Classifier:
    """Return the same tiny classifier in every process."""
    from tiny_models import add_lora

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = add_lora(model, ["q_proj", "v_proj", "lm_head"], dtype=None)
    labels = {name: f" {letter}" for name, letter in zip(LABELS, "ABCDE", strict=True)}
    template = "Message: {text}\nTopic:"
    classifier = laplora.Classifier(model, AutoTokenizer.from_pretrained(base), template, labels, max_tokens=48)
    classifier.workers = workers
    return classifier


def fits(base: Path, workers: Workers, plan: Plan, kept: dict[str, dict[str, Kept]]) -> dict[str, Any]:
    """Return by structure the sums of its passes, and what its posterior says of the rows; and what was kept first."""
    classifier, found, first = classifier_of(base, workers), dict[str, Any](), dict[str, Any]()
    rows = [{"text": f"message number {i} of {'so ' * (i % 5)}many", "label": LABELS[i % 5]} for i in range(ROWS)]
    examples = read_rows(rows, classifier, "label")
    blocks = covered_blocks(classifier.model, classifier.readout)
    for structure in plan.structures:
        laplace = {"structure": structure, "rank": 4, "joint_rank": 12, "oversampling": 4, "batch_size": 2}
        settings = FitSettings.model_validate({"laplace": laplace})
        notes = Notes(kept[structure] if plan.continued else None)
        store = SharedStore(notes, workers)
        posterior, likelihood = fit_curvature(classifier, examples, blocks, settings, store, Silent())
        split = project_split(classifier, posterior, examples, Silent(), "rows", batch_size=2)
        precisions = block_precisions(Prior("scalar", {"all": 3.0}), posterior.blocks)
        found[structure] = {
            "sums": {
                f"{name}.{part}": t for name, all_of in notes.written.items() for part, t in all_of[-1][0].items()
            },
            "likelihood": torch.tensor(likelihood, dtype=torch.float64),
            "covariance": posterior.covariance(split.projected, precisions),
            "logits": split.logits,
        }
        title, states = next(iter(notes.written.items()), ("", []))
        first[structure] = {title: states[0]} if states else {}
    return found | {"kept": first, "raised": raised(workers)}


def raised(workers: Workers) -> str:
    """Return what a process sees of an error of the first one."""

    def fail() -> None:
        raise ConfigError("in the first process")

    try:
        workers.broadcast(fail)
    except ConfigError as error:
        return str(error)
    return ""


def _one(folder: Path, base: Path, plan: Plan, rank: int) -> None:
    torch.set_num_threads(1)
    passes.SAVE_EVERY_S = -1.0  # after every round
    workers = ALONE
    if plan.count > 1:
        meeting = f"file://{folder}/{plan.name}.meeting"
        distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=plan.count)
        workers = Workers.of_group()
    one = folder / "one-0.pt"
    kept = torch.load(one)["kept"] if one.exists() else {}
    torch.save(fits(base, workers, plan, kept), folder / f"{plan.name}-{rank}.pt")


def forked(count: int, one: Callable[[int], int | None]) -> list[int]:
    """Return the exit statuses of as many forks of this process, each of which does one rank's part."""
    children = []
    for rank in range(count):
        if (child := os.fork()) == 0:
            status = 1
            try:
                status = one(rank) or 0
            except Exception:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def main(folder: Path, base: Path) -> int:
    """Go through the plans; return 1 where a process failed."""
    return int(any(any(forked(plan.count, partial(_one, folder, base, plan))) for plan in PLANS))


if __name__ == "__main__":
    import tiny_models  # noqa: F401  imported once, before the forks

    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
