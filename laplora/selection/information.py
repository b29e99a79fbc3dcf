"""The information that a row's label is expected to give about the weights, from the row's answer alone.

In the linearised model a label of a row sees its logits with precision ``Lambda = diag p - p p^T``. With their
covariance V under the posterior, the label tells about the weights, on average over what it can be,

    ``1/2 log det (I + L^T V L)`` nats,  ``L L^T = Lambda``

(MacKay 1992, *Information-based objective functions for active data selection*). If several labels may be right,
``Lambda = diag p (1 - p)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from laplora.answers.prediction import Prediction
from laplora.errors import DataError


def information(predictions: Sequence[Prediction]) -> torch.Tensor:
    """Return what each row's label is expected to tell, (rows,) float64, nats.

    Args:
        predictions: with their ``logit_covariance``: by ``laplace``, or with it beside another predictive.

    Raises:
        DataError: one without.
    """
    if any(one.logit_covariance is None for one in predictions):
        raise DataError("a prediction has no logit_covariance: ask for it, with the posterior's laplace")
    nats = torch.zeros(len(predictions), dtype=torch.float64)
    by_classes: dict[int, list[int]] = {}
    for place, one in enumerate(predictions):
        by_classes.setdefault(len(one.labels), []).append(place)
    for places in by_classes.values():
        rows = [predictions[i] for i in places]
        probs, covariance = (
            torch.from_numpy(np.array(values, dtype=np.float64))
            for values in ([one.arrays.probs for one in rows], [one.logit_covariance for one in rows])
        )
        if rows[0].labels_present is not None:
            half = torch.diag_embed((probs * (1 - probs)).clamp_min(0).sqrt())
        else:
            root = probs.sqrt()
            half = torch.diag_embed(root) - probs[:, :, None] * root[:, None, :]
        seen = torch.eye(probs.shape[1], dtype=torch.float64) + half.mT @ covariance @ half
        nats[places] = torch.linalg.slogdet((seen + seen.mT) / 2).logabsdet.clamp_min(0) / 2
    return nats
