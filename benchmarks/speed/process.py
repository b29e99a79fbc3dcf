"""A server in a process of its own."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

from benchmarks.speed.subject import ARTIFACT


@contextmanager
def served(flags: Sequence[str] = ()) -> Iterator[str]:
    """Yield the address of a server of the default artifact, once it is ready; it is gone afterwards.

    Raises:
        RuntimeError: it left before it was ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "service",
        "--artifact",
        str(ARTIFACT),
        "--port",
        str(port),
        "--auth",
        "off",
        "--log-level",
        "error",
    ]
    with subprocess.Popen([*command, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            address = f"http://127.0.0.1:{port}"
            while not _ready(address):
                if process.poll() is not None:
                    raise RuntimeError(f"the server left with {process.returncode}: {' '.join(command)}")
                time.sleep(0.02)
            yield address
        finally:
            process.terminate()


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/ready", timeout=1.0).status_code == 200
    except httpx.TransportError:
        return False
