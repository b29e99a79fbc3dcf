"""Keeping other packages' noise off the terminal while a model loads, and only then."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence what says nothing about this program; transformers' bar stays where it can be seen.

    - transformers draws its loading bar only on a terminal.
    - bitsandbytes warns on import that an optional kernel package is missing.
    - peft reads an attribute that transformers 5 deprecates.
    - peft warns of merging an adapter on a tied ``lm_head``; laplora never merges one.
    """
    import transformers.utils.logging

    bars: Any = transformers.utils.logging
    shown = bars.is_progress_bar_enabled()
    kernels = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = kernels.level
    if not sys.stderr.isatty():
        bars.disable_progress_bar()
    kernels.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
            yield
    finally:
        kernels.setLevel(level)
        if shown:
            bars.enable_progress_bar()
