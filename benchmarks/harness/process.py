"""A server in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager

import httpx

from benchmarks.harness.subject import ARTIFACT


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(flags: Sequence[str] = (), cores: Collection[int] | None = None, module: str = "service") -> Iterator[str]:
    """Yield the address of a server of the default artifact, once it is ready; it is gone afterwards.

    Args:
        flags: of ``python -m service``, beside those that every benchmark has.
        cores: that it runs on alone; None: those of this thread. module: another one that takes these flags.

    Raises:
        RuntimeError: it left before it was ready.
    """
    port = free_port()
    fixed = f"-m {module} --auth off --log-level error --port {port} --artifact"
    with on_cores(cores):  # a process begins on the cores of the thread that starts it
        process = subprocess.Popen([sys.executable, *fixed.split(), str(ARTIFACT), *flags])
    with answering(process, f"http://127.0.0.1:{port}") as address:
        yield address


@contextmanager
def answering(process: subprocess.Popen[bytes], address: str) -> Iterator[str]:
    """Yield a server's address, once its process is ready there; it is gone afterwards. Raises as ``served``."""
    with process:
        try:
            while not _ready(address):
                if process.poll() is not None:
                    raise RuntimeError(f"the server left with {process.returncode}")
                time.sleep(0.02)
            yield address
        finally:
            process.send_signal(signal.SIGINT)  # on SIGTERM it would first wait for load balancers


@contextmanager
def on_cores(cores: Collection[int] | None) -> Iterator[None]:
    """Hold this thread, and what it starts meanwhile, on some cores; None changes nothing."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, before if cores is None else cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _ready(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health/ready", timeout=1.0).status_code == 200
    except httpx.TransportError:
        return False
