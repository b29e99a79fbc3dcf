"""The endpoints that predict: POST /predict, and what other protocols call it."""

from __future__ import annotations

from typing import Final

#: As the routers write them.
PREDICTING: Final = frozenset(
    {
        "/predict",
        "/classify",
        "/v1/classify",
        "/v2/models/{name}/infer",
        "/v2/models/{name}/versions/{version}/infer",
    }
)
