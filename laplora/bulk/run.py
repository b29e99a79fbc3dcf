"""One run over a source, whatever is done to its rows: what is finished stays, what is not is worked on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import laplora
from laplora.bulk.parts import Finished, Parts
from laplora.bulk.rows import Source
from laplora.bulk.workers import Start, Workers, worked
from laplora.remote.places import place_of

if TYPE_CHECKING:
    from laplora.artifact.folder import Artifact


def finish(
    start: Start,
    source: Source,
    parts: Parts,
    who: Workers,
    artifact: Artifact,
    options: Mapping[str, Any],
    progress: Callable[[str], None] | None = None,
) -> list[Finished]:
    """Return all blocks of a source, finished, in order.

    Args:
        parts: of the finished blocks, which are held.
        artifact, options: all else that a line depends on.
        progress: called with lines for people.

    Raises:
        ConfigError: the finished blocks are of another run, or the workers cannot be had.
        DataError: the source was changed, or a store does not answer.
        LaploraError: what a worker raised; what is finished stays.
    """
    import torch

    say = progress or (lambda _line: None)
    blocks = source.blocks()
    run = {
        "laplora": laplora.__version__,
        "torch": torch.__version__,
        "artifact": artifact.digest,
        "source": place_of(source.place).identity(),
        "window": source.window,
        "device": who.device_kind,
        "threads": who.threads,
        **options,
    }
    found = parts.begin(run)
    left = [block for block in blocks if block.number not in found]
    if found:
        say(f"going on: {len(found)} of {len(blocks)} blocks are finished")
    began, rows = time.monotonic(), 0
    for done, block in enumerate(worked(start, source, left, who) if left else (), 1):
        one = parts.keep(block)
        found[one.number] = one
        rows += one.rows
        if done % -(-len(left) // 20) == 0 or done == len(left):
            say(f"{len(found)} of {len(blocks)} blocks, {rows / (time.monotonic() - began):.3g} rows a second")
    return [found[block.number] for block in blocks]
