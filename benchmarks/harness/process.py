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


@contextmanager
def served(flags: Sequence[str] = (), cores: Collection[int] | None = None, module: str = "service") -> Iterator[str]:
    """Yield the address of a server of the default artifact, once it is ready; it is gone afterwards.

    Args:
        flags: of ``python -m service``, beside those that every benchmark has.
        cores: that it runs on alone; None: those of this thread. module: another one that takes these flags.

    Raises:
        RuntimeError: it left before it was ready.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fixed = f"-m {module} --auth off --log-level error --port"
    command = [*fixed.split(), str(port), "--artifact", str(ARTIFACT), *flags]
    address = f"http://127.0.0.1:{port}"
    with on_cores(cores):  # a process begins on the cores of the thread that starts it
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    with process:
        try:
            while not _ready(address):
                if process.poll() is not None:
                    raise RuntimeError(f"the server left with {process.returncode}: {' '.join(command)}")
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
