"""Prometheus gauges of the replicas that there are; a series ends with its replica."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.backends.ray.messages import Status


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
