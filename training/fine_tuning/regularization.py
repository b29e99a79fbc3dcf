"""What holds fine-tuning to where it began: the base's answers (KL), and the initial adapter (L2).

He et al. (arXiv 2305.19249) keep what a language model learned before fine-tuning to calibrate it. There the KL is over
the masked language model's words, on texts of its pre-training, and the L2 is towards all pre-trained weights. Here the
KL is over the labels, on the training rows, and the L2 over the LoRA matrices, whose initial ones are the base.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from laplora.classifier import base_probs
from laplora.linearised import entropy, expected_log_likelihood
from training.config import OptimizerConfig
from training.workspace.provenance import adapter_inputs
from training.workspace.run import Run
from training.workspace.runtime import batches
from training.workspace.stores import FolderStore, SharedStore
from training.workspace.targets import Target
from training.workspace.terminal import progress

#: A row, what it is trained towards, and (classes,) float32 the base's probabilities.
PulledTarget = tuple[*Target, torch.Tensor]


@dataclass(frozen=True)
class Regularization:
    """What the loss has beside the targets' cross-entropy.

    Attributes:
        kl: weight of the divergence from the base's answers; l2: of half the squared distance.
        initial: the trained weights as training began, in the order of ``trained_weights``; empty without l2.
    """

    kl: float = 0.0
    l2: float = 0.0
    initial: tuple[torch.Tensor, ...] = ()

    @classmethod
    def of(cls, optimizer: OptimizerConfig, model: nn.Module) -> Regularization:
        """Return that of a configuration, held to a model's weights as they are now."""
        l2 = optimizer.l2_to_initial
        initial = tuple(weight.detach().clone() for weight in trained_weights(model)) if l2 else ()
        return cls(optimizer.kl_to_base, l2, initial)

    def loss(
        self, model: nn.Module, logits: torch.Tensor, class_mask: torch.Tensor, of_base: torch.Tensor | None
    ) -> torch.Tensor:
        """Return ``kl`` times the rows' mean ``KL(p_base || p)`` plus ``l2 / 2 |theta - theta_0|^2``, nats, float32.

        Args:
            logits: (rows, classes); class_mask: (rows, classes) bool.
            of_base: (rows, classes), p_base, 0 at impossible classes; None without kl.
        """
        total = logits.new_zeros((), dtype=torch.float32)
        if of_base is not None:
            divergence = -expected_log_likelihood(of_base, logits, class_mask) - entropy(of_base)
            total = total + self.kl * divergence.mean().float()
        for weight, start in zip(trained_weights(model), self.initial, strict=True) if self.initial else ():
            total = total + 0.5 * self.l2 * (weight - start).square().sum().float().to(total.device)
        return total


def trained_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights that training changes, in the model's order."""
    return [weight for weight in model.parameters() if weight.requires_grad]


def with_base_answers(run: Run, model: nn.Module, targets: Sequence[Target]) -> list[PulledTarget]:
    """Return a run's targets, each with the label probabilities of the base, which runs once over the rows.

    They are kept in the run's folder.

    Args:
        model: the run's, with an adapter, in evaluation mode: no dropout is drawn.
    """
    store = SharedStore(FolderStore(run.folder / "base", adapter_inputs(run)), run.workers)
    if (kept := store.read("answers")) is None:
        rows, places, parts = [row for row, _ in targets], list[int](), list[torch.Tensor]()
        plan = run.workers.share(batches(rows, run.config.laplace.batch_size))
        for index in progress(plan, "the base's answers to the training rows"):
            parts.append(base_probs(model, run.readout, run.collate([rows[i] for i in index])).float().cpu())
            places += index
        places, parts = run.workers.joined(places, parts)
        kept = {"probs": torch.cat(parts)[torch.tensor(places).argsort()]}, {}
        store.write("answers", *kept)
    return [(row, target, probs) for (row, target), probs in zip(targets, kept[0]["probs"], strict=True)]


def loss_lines(run: Run) -> list[str]:
    """Return what the loss of a run has beside the cross-entropy, in words; nothing where it has nothing."""
    optimizer, rows = run.config.optimizer, len(run.splits.train)
    lines = []
    if kl := optimizer.kl_to_base:
        lines.append(
            f"loss: {kl:g} times KL(base || adapted) is added to each row's cross-entropy (kl_to_base); before "
            "training, the base answers the training rows once"
        )
    if l2 := optimizer.l2_to_initial:
        lines.append(
            f"loss: {l2:g} / 2 times the squared distance from the initial adapter is added (l2_to_initial), with "
            f"{rows} training rows a prior of precision {l2 * rows:g}"
        )
    return lines
