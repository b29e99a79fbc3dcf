"""The loss of labels and of probabilities: one formula, with labels of some rows impossible."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from training.workspace.targets import target_loss

#: Five rows of two to four possible classes.
LOGITS = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
MASK = torch.arange(4)[None] < torch.tensor([2, 3, 4, 4, 2])[:, None]


def test_a_label_is_a_target_of_probability_one() -> None:
    labels = torch.tensor([1, 2, 3, 0, 0])
    of_labels = target_loss(LOGITS, labels, MASK)
    of_probs = target_loss(LOGITS, F.one_hot(labels, 4).float(), MASK)
    gradients = [torch.autograd.grad(loss, LOGITS)[0] for loss in (of_labels, of_probs)]
    torch.testing.assert_close(of_probs, of_labels)
    torch.testing.assert_close(*gradients)


def test_of_probabilities_the_gradient_is_what_the_answer_has_too_much() -> None:
    """Softmax less target, a row's share of the mean; 0 at impossible classes. It is the divergence's too."""
    targets = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) * MASK
    targets = targets / targets.sum(1, keepdim=True)
    (gradient,) = torch.autograd.grad(target_loss(LOGITS, targets, MASK), LOGITS)
    answers = LOGITS.detach().masked_fill(~MASK, -torch.inf).softmax(1)
    torch.testing.assert_close(gradient, (answers - targets) / 5)
    assert not gradient[~MASK].any()
