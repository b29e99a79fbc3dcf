"""How a long call tells where it is."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Takes lines and watches loops."""

    def say(self, line: str) -> None:
        """Take one line about what happens."""

    def track(self, items: Sequence[Item], title: str) -> Iterator[Item]:
        """Yield items, and show how many are done."""


class Silent:
    """Shows nothing."""

    def say(self, line: str) -> None:
        """Drop the line."""

    def track(self, items: Sequence[Item], title: str) -> Iterator[Item]:
        yield from items


class Bars:
    """Lines and tqdm's bars on standard error, in a notebook as its own."""

    def say(self, line: str) -> None:
        from tqdm.auto import tqdm

        tqdm.write(line, file=sys.stderr)

    def track(self, items: Sequence[Item], title: str) -> Iterator[Item]:
        from tqdm.auto import tqdm

        with tqdm(total=sum(map(size, items)), desc=title, leave=False) as bar:
            for item in items:
                yield item
                bar.update(size(item))


def size(item: object) -> int:
    """Return how many rows an item of a loop is: those of a batch, a list of row numbers, else one."""
    return len(item) if isinstance(item, list) else 1


def shown_by(progress: bool | Progress) -> Progress:
    """Return what shows progress: bars, or nothing, or what is given."""
    return (Bars() if progress else Silent()) if isinstance(progress, bool) else progress
