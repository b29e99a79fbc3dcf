"""This process's place among several, from their launcher: torchrun or ``accelerate launch``.

It says so by environment variables (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``). The first process writes, logs and
reports.
"""

from __future__ import annotations

import os

from laplora.errors import ConfigError


def launched() -> int:
    """Return how many processes were started for this job; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_rank() -> int:
    """Return which of them this one is, from 0."""
    return int(os.environ.get("RANK", "0")) if launched() > 1 else 0


def alone(job: str) -> None:
    """Raise ConfigError where several processes were started for a job that one does."""
    if launched() > 1:
        raise ConfigError(f"{job} runs in one process, and {launched()} were started: start it without a launcher")
