"""A Python client of the service: typed answers, retries, and lists of any length in batches.

    from laplora.client import Client

    with Client("http://localhost:8000") as client:
        for answer in client.predict([{"text": "a gripping film ."}]):
            print(answer.label, answer.probs[answer.label], answer.decision)

``Client`` may be used from several threads. ``AsyncClient`` has the same methods to await, on one event loop; a
cancelled call closes its requests in flight, and the service drops their inputs that still wait. Neither loads torch.

Start with ``asynchronous``; ``blocking`` runs it in a thread. ``requests`` and ``responses`` know the contract,
``answers`` and ``jobs`` have the types, ``retries`` and ``failures`` say what happens when no answer comes.
"""

from __future__ import annotations

from laplora.client.answers import (
    Accepted,
    Answers,
    Artifact,
    Conditioned,
    ConditionFigures,
    Evaluated,
    FeedbackResult,
    MeasuredSets,
    MethodMetrics,
    NothingAccepted,
    Prediction,
    PredictionSets,
    ServedArtifact,
    Shadow,
    ShadowDifference,
    Suggested,
    SuggestedInput,
    Uncertainty,
)
from laplora.client.asynchronous import AsyncClient
from laplora.client.blocking import Client
from laplora.client.failures import (
    ChangeFailedError,
    JobFailedError,
    RequestRefusedError,
    ServiceFailedError,
    ServiceUnavailableError,
    ServiceUnreachableError,
)
from laplora.client.jobs import BadRow, Job, JobAnswers, JobRow
from laplora.client.retries import Retries

__all__ = [
    "Accepted",
    "Answers",
    "Artifact",
    "AsyncClient",
    "BadRow",
    "ChangeFailedError",
    "Client",
    "ConditionFigures",
    "Conditioned",
    "Evaluated",
    "FeedbackResult",
    "Job",
    "JobAnswers",
    "JobFailedError",
    "JobRow",
    "MeasuredSets",
    "MethodMetrics",
    "NothingAccepted",
    "Prediction",
    "PredictionSets",
    "RequestRefusedError",
    "Retries",
    "ServedArtifact",
    "ServiceFailedError",
    "ServiceUnavailableError",
    "ServiceUnreachableError",
    "Shadow",
    "ShadowDifference",
    "Suggested",
    "SuggestedInput",
    "Uncertainty",
]
