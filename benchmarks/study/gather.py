"""Gather: the only part of the study that runs the model. One fine-tuning and one Jacobian pass per task and seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.study.config import StudyConfig
from benchmarks.study.store import SPLITS, offsets, read_configuration
from benchmarks.study.structures.kfac import every_token
from laplora.files import write_json, write_tensors
from laplora.fitting.priors import block_weights, label_rows, squared_distances
from laplora.jacobians.blocks import Block, BlockJacobian
from laplora.jacobians.contrasts import contrast_jacobians, covered_blocks
from laplora.linearised import contrast_hessian
from laplora.models.adapters import attach_adapter
from laplora.predictive.member_adapters import read_weights
from laplora.prompts.rows import EncodedRow
from laplora.readouts.label_tokens import LabelTokens
from training.config import RunConfig
from training.finetune import finetune
from training.workspace.folders import set_aside
from training.workspace.run import Run
from training.workspace.runtime import open_run
from training.workspace.terminal import progress, say


@dataclass(frozen=True)
class Trained:
    """A fine-tuned model with its run; ``batch_size`` is of forward passes."""

    run: Run
    model: Any
    blocks: tuple[Block, ...]
    batch_size: int

    def batches(self, rows: Sequence[EncodedRow], title: str) -> Iterator[list[int]]:
        """Yield row numbers in batches, with a progress bar."""
        plan = list(by_classes_and_length(rows, self.batch_size))
        yield from progress(plan, f"{self.run.config.name} {title}")


def gather(config: StudyConfig, task: str, seed: int) -> Path:
    """Fine-tune one model and store what every alternative needs of it; return the folder.

    A finished part is not done again, unless the configuration is another one now: then none of it is used.
    """
    folder = config.folder(task, seed)
    settings = config.run_config(task, seed)
    configuration = gathered_under(settings)
    wanted = [f"{split}{kind}.safetensors" for split in SPLITS for kind in (".jacobians", "")]
    if read_configuration(folder) != configuration:
        aside = set_aside(folder, tuple(path.name for path in folder.glob("*.safetensors")))
        if aside:
            say(f"what another configuration gathered is kept in {aside}")
    elif all((folder / name).is_file() for name in ("gathered.json", *wanted)):
        return folder
    write_json(folder / "configuration.json", configuration)
    finetune(settings)
    run = open_run(settings)
    model = attach_adapter(run.load_base(), settings.run_dir / "adapter")
    trained = Trained(run, model, covered_blocks(model, run.readout), config.batch_size)
    classifier = run.classifier(model)
    start = label_rows(read_weights(model, settings.run_dir / "initial_adapter"), classifier)
    for split in SPLITS:
        if not all((folder / f"{split}{kind}.safetensors").is_file() for kind in (".jacobians", "")):
            store_split(trained, split, folder)
    write_json(
        folder / "gathered.json",
        {
            "labels": list(run.splits.task.labels),
            "blocks": [vars(b) for b in trained.blocks],
            "steps": settings.optimizer.steps,
            "splits": run.splits.report,
            "squared_distances": squared_distances(block_weights(classifier), trained.blocks, start).tolist(),
        },
    )
    return folder


def gathered_under(settings: RunConfig) -> dict[str, Any]:
    """Return the fields that what is gathered depends on; how posteriors are fitted from it is not among them."""
    fields = {"seed", "base", "data", "max_tokens", "adapter", "optimizer", "predictives"}
    return settings.model_dump(mode="json", include=fields)


def store_split(trained: Trained, split: str, folder: Path) -> None:
    """Write one split's Jacobians, logits and, for the training rows, its Kronecker inputs."""
    run, blocks = trained.run, trained.blocks
    assert isinstance(run.readout, LabelTokens)
    examples = getattr(run.splits, split)
    rows = run.encode(examples)
    count, classes = len(rows), run.class_count
    jacobians = torch.zeros(count, classes - 1, offsets(blocks)[-1][1], dtype=torch.bfloat16)
    small: dict[str, torch.Tensor] = {}
    expand: dict[str, torch.Tensor] = {}

    def keep(name: str, index: list[int], values: torch.Tensor) -> None:
        if name not in small:
            small[name] = torch.zeros(count, *values.shape[1:], dtype=values.dtype)
        small[name][index] = values

    def add(name: str, values: torch.Tensor) -> None:
        expand[name] = expand.get(name, 0) + values

    for index in trained.batches(rows, split):
        batch = run.collate([rows[i] for i in index])
        # A row's first k classes are reached by the first k - 1 contrasts alone: fewer backward passes.
        possible = int(batch.class_mask.sum(1).max())
        training = split == "train"
        readout = LabelTokens(run.readout.token_ids[:possible])
        result = contrast_jacobians(trained.model, batch, readout, blocks, tokens=training)
        for i, (first, last) in enumerate(offsets(blocks)):
            jacobians[index, : possible - 1, first:last] = result.blocks[i].jacobian.flatten(2).to(jacobians)
        logits = torch.zeros(len(index), classes)
        logits[:, :possible] = result.logits.float()
        keep("logits", index, logits)
        keep("class_mask", index, batch.class_mask.cpu())
        if training:
            hessian = contrast_hessian(result.logits, batch.class_mask[:, :possible]).float()
            add("expand_tokens", batch.attention_mask.sum().float()[None])
            for i, part in enumerate(result.blocks):
                assert part.mean_input is not None
                assert part.summed_gradient is not None
                inputs, gradients, _ = every_token(part)
                keep(f"mean_input.{i}", index, part.mean_input.float())
                keep(f"summed_gradient.{i}", index, _all_contrasts(part.summed_gradient.float(), classes))
                keep(f"last_input.{i}", index, inputs[:, -1].float())
                keep(f"last_gradient.{i}", index, _all_contrasts(gradients[:, :, -1].float(), classes))
                of_inputs, of_gradients = token_products(part, hessian)
                add(f"expand_input.{i}", of_inputs)
                add(f"expand_gradient.{i}", of_gradients)
    small["labels"] = torch.tensor([e.label for e in examples])
    write_tensors(folder / f"{split}.jacobians.safetensors", {"jacobians": jacobians})
    write_tensors(folder / f"{split}.safetensors", small | expand)


def _all_contrasts(values: torch.Tensor, classes: int) -> torch.Tensor:
    """Return (batch, classes - 1, out): 0 at the contrasts with classes that these rows cannot have."""
    return torch.nn.functional.pad(values, (0, 0, 0, classes - 1 - values.shape[1]))


def token_products(part: BlockJacobian, hessian: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one block's sums over rows and tokens of both factors' outer products, (in, in) and (out, out) float32."""
    every_input, every_gradient, _ = every_token(part)
    flat, gradients = every_input.float().flatten(0, 1), every_gradient.float()
    weighted = torch.einsum("ncd,ndto->ncto", hessian, gradients)
    return flat.T @ flat, weighted.flatten(0, 2).T @ gradients.flatten(0, 2)


def by_classes_and_length(rows: Sequence[EncodedRow], size: int) -> Iterator[list[int]]:
    """Yield row numbers in batches of one class count and like length."""
    for count in sorted({row.class_count for row in rows}):
        order = [i for i, row in enumerate(rows) if row.class_count == count]
        order.sort(key=lambda i: len(rows[i].token_ids))
        yield from (order[start : start + size] for start in range(0, len(order), size))
