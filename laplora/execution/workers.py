"""Processes that share one job: each takes a share of its rows, and all know every result.

Each process runs the same code, and the calls of a ``Workers`` are collective: all of its processes make them, in the
same order. Sums and results travel between CPUs by torch.distributed's gloo, whatever the devices that computed them.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

Item = TypeVar("Item")

#: How long a process waits for another one. The first may be at work alone for hours; one that has died is noticed by
#: its closed connection, and by what started it.
_TIMEOUT = datetime.timedelta(days=7)


@dataclass(frozen=True)
class Workers:
    """The processes of a job, seen from one of them.

    Attributes:
        rank: of this process, from 0; count: of the processes.
        group: torch.distributed's, with a backend for CPU tensors; None of one process.
    """

    rank: int = 0
    count: int = 1
    group: Any = None

    @classmethod
    def of_group(cls) -> Workers:
        """Return those of torch.distributed's default group, one process where there is none; collective."""
        if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
            return ALONE
        group = distributed.new_group(backend="gloo", timeout=_TIMEOUT)
        return cls(distributed.get_rank(), distributed.get_world_size(), group)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and reports."""
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Return this process's items: every ``count``-th one."""
        return items[self.rank :: self.count]

    def summed(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return the sums over the processes, the same bits in each; the tensors stay as they are.

        Args:
            tensors: on the CPU, of the same shapes and number formats in every process.
        """
        if self.count == 1:
            return list(tensors)
        sums = [tensor.clone() for tensor in tensors]
        for tensor in sums:
            distributed.all_reduce(tensor, group=self.group)
        return sums

    def gathered(self, value: Item) -> list[Item]:
        """Return every process's value, by rank. It travels pickled; its tensors are on the CPU."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value, group=self.group)
        return values

    def joined(self, *lists: list[Any]) -> tuple[list[Any], ...]:
        """Return each list with what every process has in it, by rank."""
        return tuple([item for part in column for item in part] for column in zip(*self.gathered(lists), strict=True))

    def broadcast(self, work: Callable[[], Item]) -> Item:
        """Return the first process's result; the others do no work. Its exception is raised in all."""
        if self.count == 1:
            return work()
        answer: list[Any] = [None, None]
        if self.first:
            try:
                answer[0] = work()
            except Exception as error:
                answer[1] = error
        distributed.broadcast_object_list(answer, src=0, group=self.group)
        if answer[1] is not None:
            raise answer[1]
        result: Item = answer[0]
        return result

    def in_turn(self, work: Callable[[], Item]) -> Item:
        """Return each process's own result of work that the first one ends before the others begin.

        An exception of the first one is raised in all.
        """
        if self.count == 1:
            return work()
        results: list[Item] = []
        self.broadcast(lambda: results.append(work()))
        if not self.first:
            results.append(work())
        self.wait()
        return results[0]

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            distributed.barrier(group=self.group)


#: One process.
ALONE = Workers()


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch compute with so many threads inside the block: how sums are split over threads decides last bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
