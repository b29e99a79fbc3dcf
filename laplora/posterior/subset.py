"""Which of an adapter's matrices a posterior covers. The others keep their trained values and have no variance."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from laplora.errors import ConfigError
from laplora.jacobians.blocks import Block

_REGEX = "regex:"


def select_blocks(blocks: Sequence[Block], subset: str) -> tuple[Block, ...]:
    """Return the blocks of a subset, in order.

    Args:
        subset: ``all``; ``values_b`` (``lora_B`` of ``v_proj``); ``last_layer`` or ``last_4_layers`` (of the layers
            that have blocks; ``lm_head`` belongs to none); or ``regex:`` and an expression that is searched in the
            block's name.

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
    last = max(map(_layer, blocks), default=-1)
    rules: dict[str, Callable[[Block], bool]] = {
        "all": lambda _block: True,
        "values_b": lambda block: block.name.split(".")[-2:] == ["v_proj", "lora_B"],
        "last_layer": lambda block: _layer(block) >= max(last, 0),
        "last_4_layers": lambda block: _layer(block) >= max(last - 3, 0),
    }
    if subset in rules:
        return rules[subset]
    if not subset.startswith(_REGEX):
        raise ConfigError(f"no subset {subset!r}; there are {', '.join(rules)}, and regex: with an expression")
    try:
        pattern = re.compile(subset.removeprefix(_REGEX))
    except re.error as error:
        raise ConfigError(f"subset {subset!r}: not a regular expression: {error}") from None
    return lambda block: pattern.search(block.name) is not None


def _layer(block: Block) -> int:
    """Return the number of the block's layer, the first number in its path; -1 outside of any layer."""
    return next((int(part) for part in block.name.split(".") if part.isdecimal()), -1)
