"""The application: ``serve run service.ray_serve.app:build``, or a RayService with that import path.

One ingress, without a device, takes the requests: it is ``create_app`` with another backend. It owns what a server
keeps in memory, so no answer depends on which replica was asked. Scorers, a device each, answer its tickets.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from ray import serve
from ray.exceptions import RayActorError, RayError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentHandle

from service.app import create_app
from service.artifacts.predictors import Library
from service.backends.ray.autoscaling import TokensPolicy
from service.backends.ray.messages import Reply, Status
from service.backends.ray.present import PRESENT
from service.backends.ray.replicas import ReplicaGoneError, Replicas
from service.backends.ray.scorer import Scorer
from service.process import exempt_from_collection, prepare_for_torch
from service.ray_serve.cluster import Cluster
from service.scoring.ticket import Ticket
from service.settings import Settings
from service.telemetry.batch_report import BatchReport
from service.telemetry.logs import configure_logging
from service.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from fastapi import FastAPI
    from ray.serve import Application

#: Names of the deployments.
INGRESS, SCORER = "ingress", "scorer"
#: Calls at once of a scorer, far above what the ingress admits: it is the one that refuses.
_MOST_CALLS = 100_000
#: Seconds between two looks whether the first artifact answers.
_READY_LOOK_S = 0.1


class ReplicaGauges(Collector):
    """Reads the replicas' last statuses when it is scraped."""

    def __init__(self, statuses: Callable[[], Sequence[Status]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterable[Metric]:
        tokens = GaugeMetricFamily("laplora_replica_queue_tokens", "Tokens that wait at a replica.", labels=["replica"])
        loaded = GaugeMetricFamily("laplora_replica_artifacts", "Artifacts loaded at a replica.", labels=["replica"])
        for status in self._statuses():
            tokens.add_metric([status.replica], status.tokens)
            loaded.add_metric([status.replica], len(status.digests))
        yield from (tokens, loaded)


def build(args: Cluster) -> Application:
    """Return the application: an ingress bound to its scorers."""
    args = Cluster.model_validate(args)  # a mapping, where it comes from a file: Ray sees the annotation as a string
    settings = Settings(**args.settings)  # refused here, and not on a replica
    scale: dict[str, Any] = {"num_replicas": args.scorers}
    if args.max_scorers is not None:
        scale = {
            "autoscaling_config": {
                "min_replicas": args.scorers,
                "max_replicas": args.max_scorers,
                "upscale_delay_s": args.upscale_delay_s,
                "downscale_delay_s": args.downscale_delay_s,
                "policy": {
                    "policy_function": "service.backends.ray.autoscaling:TokensPolicy",
                    "policy_kwargs": {"target_tokens": args.target_tokens},
                },
            }
        }
    # Any other setting would restart the replica that gets it.
    own_arguments = _Own(args.settings, args.library)
    leave_s = settings.request_timeout_s + settings.drain_s
    scorer = _SCORER.options(
        **scale,
        ray_actor_options={"num_cpus": args.scorer_cpus, "num_gpus": args.scorer_gpus},
        max_surge_percent=args.max_surge_percent,
        graceful_shutdown_timeout_s=leave_s,
    )
    ingress = _INGRESS.options(
        ray_actor_options={"num_cpus": args.ingress_cpus},
        max_surge_percent=args.max_surge_percent,
        # Its own 429 comes first, whose body and Retry-After clients know.
        max_ongoing_requests=4 * settings.max_requests,
        graceful_shutdown_timeout_s=leave_s,
    )
    application: Application = ingress.bind(own_arguments, scorer.bind(own_arguments))
    return application


@dataclass(frozen=True)
class _Own:
    """The settings of a replica: a change replaces every replica."""

    settings: dict[str, Any]
    library: str


class _ScorerReplica:
    """A scorer as Ray Serve runs it."""

    def __init__(self, args: _Own) -> None:
        settings = _start(args)
        name = serve.get_replica_context().replica_id.unique_id
        self._scorer = Scorer(settings, _library(args), name)
        self._scorer.load_first()
        exempt_from_collection()

    async def load(self, digest: str, folder: str, together: bool) -> Reply:
        return await self._scorer.load(digest, folder, together)

    async def predict(self, ticket: Ticket, folder: str) -> Reply:
        return await self._scorer.predict(ticket, folder)

    async def make_version(self, digest: str, folder: str, given: Any) -> Reply:
        return await self._scorer.make_version(digest, folder, given)

    async def status(self, wanted: dict[str, str], by: str, batches_to: int) -> Status:
        return self._scorer.status(wanted, by, batches_to)

    async def check_health(self) -> None:
        """End the process where the device has failed: another one takes its place."""
        self._scorer.check()

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return what ``TokensPolicy`` scales by."""
        return {TokensPolicy.METRIC: float(self._scorer.local.backlog.tokens)}


class _IngressReplica:
    """The application as Ray Serve runs it; it is made inside the replica, for nothing of it can be pickled."""

    def __init__(self, args: _Own, scorer: DeploymentHandle[Any]) -> None:
        self._args, self._settings, self._calls = args, _start(args), _ServeCalls(scorer)

    def __serve_build_asgi_app__(self) -> FastAPI:
        self._app = create_app(
            self._settings, backend=self._backend, library=_library(self._args), on_change=exempt_from_collection
        )
        return self._app

    def _backend(
        self,
        settings: Settings,
        library: Library,
        metrics: Metrics,
        on_batch: Sequence[Callable[[BatchReport], None]],
    ) -> Replicas:
        replicas = Replicas(settings, library, self._calls, on_batch=on_batch)
        metrics.registry.register(ReplicaGauges(lambda: replicas.statuses))
        return replicas

    async def check_health(self) -> None:
        """Return once an artifact answers. At the start Ray Serve waits for this before it sends requests here.

        Raises:
            RuntimeError: the configured artifacts cannot be served.
        """
        host = self._app.state.artifacts
        while host.active is None:
            if host.stage.startswith("failed"):
                raise RuntimeError(f"the artifacts to start with cannot be served: {host.stage}")
            await asyncio.sleep(_READY_LOOK_S)


class _ServeCalls:
    """Calls of scorers through Ray Serve. A ``service.backends.ray.replicas.Calls``."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle

    def present(self) -> frozenset[str]:
        """Return the names of the replicas, as the router of this process was told."""
        return PRESENT.of(SCORER)

    async def call(self, replica: str, method: str, *arguments: Any) -> Any:
        """Return what a method of a replica returns; ReplicaGoneError where it is gone."""
        response = self._handle.options(method_name=method, multiplexed_model_id=replica).remote(*arguments)
        try:
            return await response
        except asyncio.CancelledError:
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        except (RayError, DeploymentUnavailableError, ReplicaUnavailableError) as error:
            # An error of a replica's own code is also of Ray's class for it: it would be the same at another replica.
            if isinstance(error, RayTaskError) and not isinstance(error, RayActorError | TaskCancelledError):
                raise
            raise ReplicaGoneError(type(error).__name__) from None


def _start(args: _Own) -> Settings:
    settings = Settings(**args.settings)
    configure_logging(settings.log_level, settings.log_format)
    prepare_for_torch()
    return settings


def _library(args: _Own) -> Library:
    module, _, name = args.library.partition(":")
    library: Library = getattr(importlib.import_module(module), name)()
    return library


_SCORER = serve.deployment(
    name=SCORER,
    max_ongoing_requests=_MOST_CALLS,
    health_check_period_s=1.0,
    logging_config={"enable_access_log": False},
    health_check_timeout_s=30.0,
    request_router_config={"request_router_class": "service.backends.ray.router:DirectRouter"},
)(_ScorerReplica)
_INGRESS = serve.deployment(
    name=INGRESS,
    num_replicas=1,
    request_router_config={"request_router_class": "service.backends.ray.router:AnyRouter"},
)(serve.ingress()(_IngressReplica))
