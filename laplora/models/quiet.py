"""Keeping other packages' noise off the terminal while a model loads or is converted, and only then."""

from __future__ import annotations

import contextlib
import io
import logging
import sys
import warnings
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Silence what says nothing about this program; transformers' bar stays on a terminal."""
    import transformers.utils.logging

    bars: Any = transformers.utils.logging  # typed in part only
    shown = bars.is_progress_bar_enabled()
    # bitsandbytes warns on import that an optional kernel package is missing
    kernels = logging.getLogger("bitsandbytes.backends.cpu.ops")
    level = kernels.level
    kernels.setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        bars.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            # peft reads an attribute that transformers 5 deprecates, and warns of merging, which laplora never does
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            warnings.filterwarnings("ignore", "Model has `tie_word_embeddings=True`", UserWarning)
            # GPT-2's linears are transposed as they are and not once in 4 bit: peft finds out for each
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to", UserWarning)
            yield
    finally:
        kernels.setLevel(level)
        if shown:
            bars.enable_progress_bar()


@contextlib.contextmanager
def only_errors_logged() -> Iterator[None]:
    """Let transformers log errors alone: of a classifier's base it reports that the head is still to be trained."""
    import transformers.utils.logging

    transformers_logging: Any = transformers.utils.logging
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


@contextlib.contextmanager
def silent_transformers() -> Iterator[None]:
    """Silence transformers' bars, log lines and warnings."""
    # One bar of the GGUF reader ignores the switch and writes to sys.stderr directly.
    with only_errors_logged(), contextlib.redirect_stderr(io.StringIO()), quiet_loading(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
