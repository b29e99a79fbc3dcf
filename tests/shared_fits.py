"""Fits that several processes share, each started here with a tiny model of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_models import add_lora
from torch import distributed, multiprocessing
from transformers import AutoModelForCausalLM, AutoTokenizer

import laplora
from laplora.fitting.curvature import fit_curvature
from laplora.fitting.progress import Silent
from laplora.fitting.projected import project_split, split_tensors
from laplora.fitting.rows import read_rows
from laplora.fitting.settings import FitSettings
from laplora.fitting.store import Forgetful, Kept, SharedStore
from laplora.jacobians.contrasts import covered_blocks
from laplora.posterior.base import Prior, block_precisions
from laplora.workers import Workers

LABELS = ("bill", "card", "app", "loan", "other")
STRUCTURES = ("exact", "joint", "joint_core", "ekfac", "kfac_reduce")
#: Rows of the fits: of batches of two, more than four processes have in whole rounds.
ROWS = 13
Tensors = dict[str, torch.Tensor]


class Notes(Forgetful):
    """Remembers what was written, and gives back what it was made with.

    Attributes:
        written: the tensors of every pass as they were last written.
    """

    def __init__(self, kept: dict[str, Kept] | None = None) -> None:
        self.kept, self.written = kept or {}, dict[str, list[Kept]]()

    def read(self, name: str, made_from: str = "") -> Kept | None:
        """Return what it was made with under a name."""
        return self.kept.get(name)

    def write(self, name: str, tensors: Any, notes: Any, made_from: str = "") -> None:
        """Note it."""
        self.written.setdefault(name, []).append((dict(tensors), dict(notes)))


def classifier_of(base: Path, workers: Workers) -> laplora.Classifier:
    """Return the same tiny classifier in every process."""
    model = add_lora(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), ["q_proj", "v_proj", "lm_head"], dtype=None
    )
    labels = {name: f" {letter}" for name, letter in zip(LABELS, "ABCDE", strict=True)}
    template = "Message: {text}\nTopic:"
    classifier = laplora.Classifier(model, AutoTokenizer.from_pretrained(base), labels, template, max_tokens=48)
    classifier.workers = workers
    return classifier


def fits(base: Path, workers: Workers, kept: dict[str, Kept] | None = None) -> dict[str, Tensors]:
    """Return by structure the sums of its passes, and rows' covariances under a prior."""
    classifier, found = classifier_of(base, workers), dict[str, Tensors]()
    rows = [{"text": f"message number {i} of {'so ' * (i % 5)}many", "label": LABELS[i % 5]} for i in range(ROWS)]
    examples = read_rows(rows, classifier, "label")
    blocks = covered_blocks(classifier.model, classifier.readout)
    for structure in STRUCTURES:
        laplace = {"structure": structure, "rank": 4, "joint_rank": 12, "oversampling": 4, "batch_size": 2}
        settings = FitSettings.model_validate({"laplace": laplace})
        notes = Notes(kept)
        store = SharedStore(notes, workers)
        posterior, likelihood = fit_curvature(classifier, examples, blocks, settings, store, Silent())
        split = project_split(classifier, posterior, examples, Silent(), "rows", batch_size=2)
        precisions = block_precisions(Prior("scalar", {"all": 3.0}), posterior.blocks)
        sums = {f"{name}.{part}": t for name, all_of in notes.written.items() for part, t in all_of[-1][0].items()}
        found[structure] = sums | {
            "likelihood": torch.tensor(likelihood, dtype=torch.float64),
            "covariance": posterior.covariance(split.projected, precisions),
            "logits": split_tensors(split)["logits"],
        }
    return found


def in_processes(count: int, folder: Path, base: Path) -> list[dict[str, Tensors]]:
    """Return what ``fits`` gives in each of some processes."""
    multiprocessing.start_processes(_one, args=(count, folder, base), nprocs=count, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt") for rank in range(count)]


def _one(rank: int, count: int, folder: Path, base: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    torch.save(fits(base, Workers.of_group()), folder / f"{rank}.pt")
    distributed.destroy_process_group()
