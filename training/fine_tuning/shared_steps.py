"""A step's rows shared by several processes: the batches of one process, each taken in parts, no row twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler

from laplora.execution.workers import Workers

#: Makes a batch of rows, by the names of its parts.
Collate = Callable[[Sequence[Any]], dict[str, Any]]


class SharedBatches(Sampler[list[int]]):
    """This process's rows of every batch, none where a batch has fewer rows than there are processes.

    The batches are those that one process would run, whatever the number of processes.

    Attributes:
        order: gives the rows of an epoch.
    """

    def __init__(self, order: Any, batch_size: int, workers: Workers) -> None:
        """Take the order, and how many of its rows are a batch of all processes together."""
        self.order, self._batch_size, self._workers = order, batch_size, workers

    def set_epoch(self, epoch: int) -> None:
        self.order.set_epoch(epoch)

    def __len__(self) -> int:
        return -(-len(self.order) // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rows = list(self.order)
        for start in range(0, len(rows), self._batch_size):
            yield list(self._workers.share(rows[start : start + self._batch_size]))


class SharedLoader(DataLoader[Any]):
    """Loads the rows of ``SharedBatches``; the Trainer says which epoch it is."""

    def set_epoch(self, epoch: int) -> None:
        sampler: Any = self.batch_sampler
        sampler.set_epoch(epoch)


def shared_loader(rows: Sequence[Any], batches: SharedBatches, collate: Collate) -> SharedLoader:
    """Return the loader of this process's rows, each batch with ``counted``, how many of its rows count.

    A process without a row runs the first one, which then counts as none: all processes take part in every step.
    """

    def collated(items: Sequence[Any]) -> dict[str, Any]:
        return {**collate(items or [rows[0]]), "counted": len(items)}

    return SharedLoader(rows, batch_sampler=batches, collate_fn=collated)  # type: ignore[arg-type]


def in_forward(model: nn.Module, work: Callable[[nn.Module], torch.Tensor]) -> torch.Tensor:
    """Return what work gives of a model, done inside the forward of what the model is wrapped in.

    From there it follows gradients.

    Args:
        model: plain, or in ``DistributedDataParallel``.
    """
    inner: Any = model.module if isinstance(model, DistributedDataParallel) else model
    before = vars(inner).get("forward")
    inner.forward = lambda _trigger: work(inner)
    try:
        result: torch.Tensor = model(None)
    finally:
        del inner.forward
        if before is not None:
            inner.forward = before
    return result
