"""The loss of labels and of probabilities: one formula, with labels of some rows impossible."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from training.workspace.targets import target_loss


def test_the_gradient_is_what_the_answer_has_too_much() -> None:
    """Softmax less target, a row's share of the mean; 0 at impossible classes. A label is a target of probability one.

    It is the divergence's too. Five rows of two to four possible classes.
    """
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    mask = torch.arange(4)[None] < torch.tensor([2, 3, 4, 4, 2])[:, None]
    answers = logits.detach().masked_fill(~mask, -torch.inf).softmax(1)
    probs = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) * mask
    labels = torch.tensor([1, 2, 3, 0, 0])
    for given, targets in ((probs / probs.sum(1, keepdim=True),) * 2, (labels, F.one_hot(labels, 4).float())):
        loss = target_loss(logits, given, mask)
        torch.testing.assert_close(loss, target_loss(logits, targets, mask))
        (gradient,) = torch.autograd.grad(loss, logits)
        torch.testing.assert_close(gradient, (answers - targets) / 5)
        assert not gradient[~mask].any()
