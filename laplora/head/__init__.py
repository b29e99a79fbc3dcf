"""Heads: features and labels in, calibrated probabilities out, without a model. It imports torch alone.

Start at ``fit``, of tensors or numpy arrays. It returns a ``FittedHead`` with its rows, whose ``Head`` is what is kept
and answers. ``choice`` finds the precisions by ``folds``, ``newton`` the mode in one of two ``spaces``.
"""

from laplora.head.errors import HeadError
from laplora.head.fit import FittedHead, fit
from laplora.head.folds import FOLDS, fold_numbers
from laplora.head.head import Head

__all__ = ["FOLDS", "FittedHead", "Head", "HeadError", "fit", "fold_numbers"]
