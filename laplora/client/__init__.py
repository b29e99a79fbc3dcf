"""A Python client of the service: retries, long lists in batches, typed answers; blocking and asynchronous.

    from laplora.client import Client

    with Client("http://localhost:8000") as client:
        for answer in client.predict([{"text": "a gripping film ."}]):
            print(answer.label, answer.probs[answer.label], answer.decision)

``AsyncClient`` has the same methods to await. Needs httpx and nothing else of laplora: no torch is loaded.
"""

from __future__ import annotations

from laplora.client.answers import (
    Answers,
    Artifact,
    Evaluated,
    FeedbackResult,
    MethodMetrics,
    Prediction,
    ServedArtifact,
    Uncertainty,
)
from laplora.client.asynchronous import AsyncClient
from laplora.client.blocking import Client
from laplora.client.failures import (
    RequestRefusedError,
    ServiceFailedError,
    ServiceUnavailableError,
    ServiceUnreachableError,
)
from laplora.client.jobs import BadRow, Job, JobFailedError
from laplora.client.retries import Retries

__all__ = [
    "Answers",
    "Artifact",
    "AsyncClient",
    "BadRow",
    "Client",
    "Evaluated",
    "FeedbackResult",
    "Job",
    "JobFailedError",
    "MethodMetrics",
    "Prediction",
    "RequestRefusedError",
    "Retries",
    "ServedArtifact",
    "ServiceFailedError",
    "ServiceUnavailableError",
    "ServiceUnreachableError",
    "Uncertainty",
]
