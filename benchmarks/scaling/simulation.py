"""A discrete-event simulation of the server, and of a router in front of several devices, by SimPy.

What decides in the server decides here too: ``service.scoring.admission`` lets requests in, and
``service.scoring.batching`` chooses each batch. Only times are simulated: the device takes what ``DeviceCost`` says of
the padded batch, the host what ``HostCost`` says of the request. Networks and faults are left out, and tokenising,
which has threads of its own, counts as the host's.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import simpy

from benchmarks.scaling.costs import DeviceCost, HostCost
from service.errors import ServiceError
from service.scoring.admission import Admission, Amount, Reservation
from service.scoring.batching import Waiting, next_batch
from service.scoring.fairness import Request, Turns

_Steps = Generator[simpy.Event, Any, None]


@dataclass(frozen=True)
class Cluster:
    """What is simulated.

    Attributes:
        device, host: what an answer costs.
        replicas: devices, each with a queue of its own.
        ingresses: event loops in front of them, which take requests in turn.
        shared_core: host and device take turns on one core, so that the device waits for what the host does.
        hop_s: seconds from an ingress to a device, and the same back.
        token_budget: most padded tokens of a batch.
        queue_rows: most rows that wait, of all devices together; ``client_share``: most that one caller holds of it.
    """

    device: DeviceCost
    host: HostCost
    replicas: int = 1
    ingresses: int = 1
    shared_core: bool = False
    hop_s: float = 0.0
    token_budget: int = 512
    queue_rows: int = 2048
    client_share: float = 0.5


@dataclass(frozen=True)
class Arrival:
    """A request of one row: when it comes, seconds, from whom, and the tokens of its prompt."""

    at: float
    caller: str
    tokens: int


@dataclass(frozen=True)
class Answer:
    """What became of a request: seconds from its arrival, and whether it was answered or refused for want of room."""

    latency_s: float
    answered: bool


@dataclass(frozen=True, eq=False)
class _Row(Waiting):
    """A row that waits: ``gone`` happens when its batch has run."""

    gone: simpy.Event
    reservation: Reservation


@dataclass(eq=False)
class _Replica:
    """A device and the rows that wait for it."""

    environment: simpy.Environment
    waiting: list[_Row] = field(default_factory=list)
    turns: Turns = field(default_factory=Turns)
    tokens: int = 0  # that wait or run: what the router compares
    owed_s: float = 0.0  # of the host's work on the device's core, done since its batch began
    busy: bool = False

    def __post_init__(self) -> None:
        self.came = self.environment.event()

    def put(self, row: _Row) -> None:
        """Let a row wait."""
        self.waiting.append(row)
        self.tokens += row.tokens
        if not self.came.triggered:
            self.came.succeed()


class _Simulated:
    """One simulation: the parts, and the steps of a device and of a request."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.environment = simpy.Environment()
        self.admission = Admission(Amount(cluster.queue_rows, 1 << 40, 1 << 40), client_share=cluster.client_share)
        self.ingress = simpy.Resource(self.environment, capacity=cluster.ingresses)
        self.replicas = [_Replica(self.environment) for _ in range(cluster.replicas)]
        for replica in self.replicas:
            self.environment.process(self._device(replica))
        self.group = object()  # one artifact, one predictive: all rows may share batches

    def _device(self, replica: _Replica) -> _Steps:
        cluster, environment = self.cluster, self.environment
        while True:
            if not replica.waiting:
                replica.turns, replica.busy, replica.came = Turns(), False, environment.event()
                yield replica.came
            replica.busy = True
            chosen, replica.turns = next_batch(replica.waiting, replica.turns, token_budget=cluster.token_budget)
            batch = [replica.waiting[i] for i in chosen]
            for i in sorted(chosen, reverse=True):
                del replica.waiting[i]
            for row in batch:
                self.admission.change(row.reservation, Amount(-1, -row.tokens))
            yield environment.timeout(cluster.device.of(len(batch) * max(row.tokens for row in batch)))
            while replica.owed_s:
                owed, replica.owed_s = replica.owed_s, 0.0
                yield environment.timeout(owed)
            replica.tokens -= sum(row.tokens for row in batch)
            for row in batch:
                row.gone.succeed()

    def _host(self, seconds: float) -> _Steps:
        """Take an ingress for so long; a device on the same core has to make up for it."""
        with self.ingress.request() as turn:
            yield turn
            if self.cluster.shared_core and self.replicas[0].busy:
                self.replicas[0].owed_s += seconds
            yield self.environment.timeout(seconds)

    def request(self, arrival: Arrival, answers: list[Answer | None], number: int) -> _Steps:
        """Follow one request from now on to its answer, which is put in its place among the answers."""
        environment, cluster = self.environment, self.cluster
        begun = environment.now
        try:
            reservation = self.admission.reserve(arrival.caller, Amount(1, arrival.tokens), fewest_tokens=1)
        except ServiceError:
            yield from self._host(cluster.host.refusal_s)
            answers[number] = Answer(environment.now - begun, answered=False)
            return
        yield from self._host(cluster.host.request_s)
        yield environment.timeout(cluster.hop_s)
        replica = min(self.replicas, key=lambda one: one.tokens)
        row = _Row(arrival.tokens, Request(arrival.caller, self.group), environment.event(), reservation)
        replica.put(row)
        yield row.gone
        yield environment.timeout(cluster.hop_s)
        self.admission.close(reservation)
        answers[number] = Answer(environment.now - begun, answered=True)


def simulate(cluster: Cluster, arrivals: Sequence[Arrival]) -> list[Answer]:
    """Return what becomes of requests that come at their times, whatever becomes of the earlier ones."""
    simulated = _Simulated(cluster)
    answers: list[Answer | None] = [None] * len(arrivals)

    def come() -> _Steps:
        for number, arrival in enumerate(arrivals):
            yield simulated.environment.timeout(arrival.at - simulated.environment.now)
            simulated.environment.process(simulated.request(arrival, answers, number))

    simulated.environment.process(come())
    simulated.environment.run()
    return [answer for answer in answers if answer is not None]


def simulate_clients(cluster: Cluster, clients: Iterable[tuple[str, Sequence[int]]], seconds: float) -> float:
    """Return the answers a second to clients that each wait for their answers: the capacity.

    Args:
        clients: each one's caller, and the tokens of its prompts, which it asks in turn.
    """
    simulated = _Simulated(cluster)
    answered = 0

    def client(caller: str, tokens: Sequence[int]) -> _Steps:
        nonlocal answered
        for position in range(1 << 40):
            if simulated.environment.now >= seconds:
                return
            found: list[Answer | None] = [None]
            arrival = Arrival(simulated.environment.now, caller, tokens[position % len(tokens)])
            yield from simulated.request(arrival, found, 0)
            answered += found[0] is not None and found[0].answered

    for caller, tokens in clients:
        simulated.environment.process(client(caller, tokens))
    simulated.environment.run()
    return answered / simulated.environment.now
