"""Ports of this machine for servers that have to be told one."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

#: Of each port that was given out in this process its file, locked until the process ends.
_reserved: list[IO[bytes]] = []


def free_port() -> int:
    """Return a port that nobody listens on and no other process of the tests was given.

    It is below those that the system gives to connections of their own accord.
    """
    # Not by the shared generator: a model's training seeds it.
    draw = random.SystemRandom()
    folder = Path(tempfile.gettempdir()) / f"laplora-tests-ports-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    while True:
        port = draw.randint(20_000, 32_000)
        file = (folder / str(port)).open("ab")
        with socket.socket() as probe, suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            probe.bind(("", port))
            _reserved.append(file)
            return port
        file.close()
