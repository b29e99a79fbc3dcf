"""Which of an adapter's matrices a posterior covers.

The others keep their trained values and have no variance.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block

_REGEX = "regex:"


def select_blocks(blocks: Sequence[Block], subset: str) -> tuple[Block, ...]:
    """Return the blocks of a subset, in order.

    Args:
        subset: ``all``; ``values_b`` (``lora_B`` of ``v_proj``); ``last_layer``; ``last_4_layers`` (of the layers
            that have blocks; matrices outside of any layer, as of ``lm_head``, belong to none); or ``regex:`` and
            a regular expression that is searched in the block's name.

    Raises:
        ConfigError: no such subset, a bad regular expression, or a subset without a block.
    """
    chosen = _rule(subset, blocks)
    covered = tuple(b for b in blocks if chosen(b))
    if not covered:
        some = ", ".join(b.name for b in blocks[:4])
        raise ConfigError(f"subset {subset!r} holds none of the adapter's {len(blocks)} blocks, such as {some}")
    return covered


def _rule(subset: str, blocks: Sequence[Block]) -> Callable[[Block], bool]:
    if subset == "all":
        return lambda _block: True
    if subset == "values_b":
        return lambda block: block.name.split(".")[-2:] == ["v_proj", "lora_B"]
    if subset in ("last_layer", "last_4_layers"):
        last = max((_layer(b) for b in blocks), default=-1)
        first = max(last - (0 if subset == "last_layer" else 3), 0)
        return lambda block: _layer(block) >= first
    if subset.startswith(_REGEX):
        try:
            pattern = re.compile(subset.removeprefix(_REGEX))
        except re.error as error:
            raise ConfigError(f"subset {subset!r}: not a regular expression: {error}") from None
        return lambda block: pattern.search(block.name) is not None
    raise ConfigError(
        f"no subset {subset!r}; there are all, values_b, last_layer, last_4_layers, and regex: with an expression"
    )


def _layer(block: Block) -> int:
    """Return the number of the block's layer, the first number in its path; -1 outside of any layer."""
    return next((int(part) for part in block.name.split(".") if part.isdecimal()), -1)
