"""A bar of how many inputs are answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


@contextmanager
def advancing(total: int, progress: bool | Advance) -> Iterator[Advance]:
    """Yield a function to call with the number of inputs answered since its last call: the given one, or a bar's."""
    if progress is False:
        yield lambda count: None
    elif progress is True:
        from tqdm.auto import tqdm

        with tqdm(total=total, unit="input") as bar:
            yield bar.update
    else:
        yield progress
