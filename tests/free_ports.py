"""Ports of this machine for servers that have to be told one."""

from __future__ import annotations

import random
import socket
from contextlib import suppress


def free_port() -> int:
    """Return a port that nobody listens on, below those that the system gives to connections of their own accord."""
    # Not by the shared generator: a model's training seeds it, and two test processes would draw the same ports.
    draw = random.SystemRandom()
    while True:
        port = draw.randint(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            return port
