"""What POST /predict answered lately, of each loaded artifact, in memory alone."""

from __future__ import annotations

import asyncio
import heapq
import json
import secrets
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.recent.sample import Sample

#: Of an input's fields, the same for the same fields in another order. ``json.dumps`` would make one for each input.
_ENCODER = json.JSONEncoder(ensure_ascii=False, sort_keys=True)


@dataclass
class _Halves:
    """Samples of the present half of the window and of the one before it."""

    now: Sample
    before: Sample


class RecentInputs:
    """A sample of each loaded artifact's distinct inputs. May be used from several threads.

    The window has two halves, each with a uniform sample of its own: a busy minute weighs no more than its distinct
    inputs. After half of ``keep_s`` the older sample goes, so that no input stays for longer than ``keep_s``.

    Args:
        rows: most inputs of an artifact, half of them of each half of the window; 0 keeps none.
        size_bytes: most bytes of them, as JSON.
        by_caller: whether it is kept who sent an input; without it all are everybody's.
        draw: gives so many random bytes, for hashes; each sample has its own.
    """

    def __init__(
        self,
        *,
        rows: int,
        size_bytes: int,
        keep_s: float,
        by_caller: bool,
        draw: Callable[[int], bytes] = secrets.token_bytes,
    ) -> None:
        self.keep_s = keep_s
        self._rows, self._size_bytes, self._by_caller, self._draw = rows, size_bytes, by_caller, draw
        self._halves: dict[str, _Halves] = {}
        self._lock = threading.Lock()

    @property
    def on(self) -> bool:
        """Whether any input is kept."""
        return self._rows > 0

    def __len__(self) -> int:
        """Return how many inputs are kept; one that is in both halves counts twice."""
        return sum(len(sample) for sample in self._samples())

    @property
    def size_bytes(self) -> int:
        """Bytes of the inputs that are kept."""
        return sum(sample.size_bytes for sample in self._samples())

    def follow(self, loaded: Callable[[], Collection[str]]) -> None:
        """Keep inputs of the artifacts that are loaded alone from now on; those of others are gone.

        Args:
            loaded: says their digests. Of two calls at once, the later one's answer counts.
        """
        with self._lock:
            kept = {digest: self._halves.get(digest) for digest in loaded() if self.on}
            self._halves = {
                digest: halves or _Halves(self._sample(), self._sample()) for digest, halves in kept.items()
            }

    def add(self, digest: str, caller: str, inputs: Sequence[Mapping[str, Any]]) -> None:
        """Take in inputs that an artifact answered: the template's fields of each.

        Not one that came as a prompt: it has no fields, so it could not be a labelled row.
        """
        name = sys.intern(caller) if self._by_caller else ""
        lines = [_line(fields) for fields in inputs if fields.keys() != {"prompt"}]
        with self._lock:
            # None of an artifact that was unloaded while it answered.
            if (halves := self._halves.get(digest)) is not None:
                for line in lines:
                    halves.now.add(line, name)

    def lines(self, digest: str, caller: str | None, most: int | None = None) -> list[bytes]:
        """Return an artifact's inputs, each the JSON of its fields, in an order that has nothing to do with them.

        Args:
            caller: whose; None: everybody's.
            most: a random part of no more; None: all.
        """
        with self._lock:
            halves = self._halves.get(digest)
            found = [] if halves is None else [*halves.now.of(caller), *halves.before.of(caller)]
        places = {line: place for place, line in found}
        wanted = len(places) if most is None else most
        return heapq.nsmallest(wanted, places, key=places.__getitem__)

    def forget(self, caller: str | None) -> int:
        """Drop a caller's inputs of every artifact, None: everybody's; return how many there were."""
        forgotten = 0
        with self._lock:
            for halves in self._halves.values():
                if caller is None:
                    forgotten += len(halves.now) + len(halves.before)
                    halves.now, halves.before = self._sample(), self._sample()
                else:
                    forgotten += halves.now.forget(caller) + halves.before.forget(caller)
        return forgotten

    def turn(self) -> None:
        """Begin the next half of the window: what is older than the present half goes."""
        with self._lock:
            for halves in self._halves.values():
                halves.before, halves.now = halves.now, self._sample()
                halves.before.cut(self._rows // 2)

    async def keep_turning(self) -> None:
        """Turn every half of ``keep_s``, until cancelled."""
        while self.on:
            await asyncio.sleep(self.keep_s / 2)
            self.turn()

    def _samples(self) -> list[Sample]:
        with self._lock:
            return [sample for halves in self._halves.values() for sample in (halves.now, halves.before)]

    def _sample(self) -> Sample:
        return Sample(self._rows - self._rows // 2, self._size_bytes // 2, self._draw(32))


def _line(fields: Mapping[str, Any]) -> bytes:
    """Return an input's fields as one line of JSON."""
    return _ENCODER.encode(fields).encode()
