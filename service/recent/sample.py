"""A uniform sample of the distinct inputs that come one by one, in bounded memory."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator

#: Most that one input may have, as a share of the bytes of all.
LARGEST_SHARE = 0.01


class Sample:
    """The inputs with the smallest keyed hashes: each distinct one is as likely as any other, however often it came.

    It is the bottom-k sketch of Cohen and Kaplan (Summarizing data using bottom-k sketches, PODC 2007). Once an input
    left for want of rows or bytes, none with a larger hash comes in: the sample stays uniform over all that came.

    Args:
        rows: most inputs; size_bytes: most bytes of them, of which one may have ``LARGEST_SHARE``.
        key: of the hash, up to 64 bytes. Nobody who does not know it can see to it that an input is kept.
    """

    def __init__(self, rows: int, size_bytes: int, key: bytes) -> None:
        self._rows, self._most_bytes, self._key = rows, size_bytes, key
        self._kept: dict[int, tuple[bytes, tuple[str, ...]]] = {}
        self._largest: list[int] = []  # a heap of the hashes, negated
        self._below = 2**128
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, line: bytes, caller: str) -> None:
        """Take an input in, or the caller of one that is kept, or neither."""
        if len(line) > LARGEST_SHARE * self._most_bytes:
            return
        place = int.from_bytes(hashlib.blake2b(line, digest_size=16, key=self._key).digest())
        if place >= self._below:
            return
        if place in self._kept:
            _, callers = self._kept[place]
            if caller not in callers:
                self._kept[place] = line, (*callers, caller)
            return
        self._kept[place] = line, (caller,)
        self.size_bytes += len(line)
        heapq.heappush(self._largest, -place)
        self.cut(self._rows)

    def cut(self, rows: int) -> None:
        """Keep at most so many inputs from now on."""
        self._rows = rows
        while len(self._kept) > rows or self.size_bytes > self._most_bytes:
            self._below = -heapq.heappop(self._largest)
            self.size_bytes -= len(self._kept.pop(self._below)[0])

    def of(self, caller: str | None) -> Iterator[tuple[int, bytes]]:
        """Yield the hash of each input that a caller sent, None for any, and the input."""
        return ((place, line) for place, (line, callers) in self._kept.items() if caller is None or caller in callers)

    def forget(self, caller: str) -> int:
        """Drop what this caller alone sent, and that it sent what others sent too; return how much both are.

        A sample of which nothing is left begins anew: the hashes that it stopped at were of inputs that are gone.
        """
        sent = [place for place, (_, callers) in self._kept.items() if caller in callers]
        for place in sent:
            line, callers = self._kept.pop(place)
            if others := tuple(c for c in callers if c != caller):
                self._kept[place] = line, others
            else:
                self.size_bytes -= len(line)
        if sent:
            self._largest = [-place for place in self._kept]
            heapq.heapify(self._largest)
        if not self._kept:
            self._below = 2**128
        return len(sent)
