"""Ray for a command: the cluster that this process has, the one that ``RAY_ADDRESS`` names, or one of this machine."""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from laplora.errors import ConfigError, first_line, needs

#: How often Ray is started on this machine: it gives up after 30 seconds, which a busy one may need.
_STARTS = 3
#: Seconds for which a cluster elsewhere may take to accept a connection.
_REACH_S = 20.0
#: Memory of the objects that a cluster in this machine shares: descriptions of work and blocks of answers go through
#: it, and Ray puts on disk what does not fit.
OBJECT_STORE_BYTES = 100 * 2**20


def import_ray(library: str = "ray") -> Any:
    """Return Ray with one of its libraries imported; ConfigError: it is not installed.

    Ray then tells its makers nothing of its use, and what it starts on this machine has the priority of any process,
    where Ray's own choice is the lowest but four: both unless the environment says otherwise.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        importlib.import_module(library)
        import ray
    except ModuleNotFoundError as error:
        raise needs("ray", error) from None
    return ray


def connect(ray: Any, cpus: int, *, object_store_bytes: int = OBJECT_STORE_BYTES, **options: Any) -> None:
    """Join the cluster that ``RAY_ADDRESS`` names, or start one of this machine alone, which ends with this process.

    Args:
        cpus, object_store_bytes: what one of this machine hands out, also where there are fewer cores, and its shared
            memory.
        options: of ``ray.init``.

    Raises:
        ConfigError: the cluster cannot be reached, or Ray does not start.
    """
    if address := os.environ.get("RAY_ADDRESS"):
        _check_reachable(address)
    here = {"address": "local", "include_dashboard": False, "object_store_memory": object_store_bytes, "num_cpus": cpus}
    for left in reversed(range(1 if address else _STARTS)):
        try:
            ray.init(**({"address": address} if address else here), **options)
            return
        except Exception as error:  # Ray has no class for it
            ray.shutdown()
            if not left:
                what = f"cannot be reached at {address}" if address else "does not start on this machine"
                raise ConfigError(f"Ray {what} ({first_line(error)[:200]})") from error


class Machine(NamedTuple):
    """The resources that a machine of a cluster offers."""

    cpus: int
    gpus: int


def machines(ray: Any) -> list[Machine]:
    """Return the machines that the cluster has now, whatever else works on them."""
    resources = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return [Machine(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in resources]


def _check_reachable(address: str) -> None:
    """Return if somebody listens at ``host:port`` or ``ray://host:port``: Ray itself asks there for minutes.

    Raises:
        ConfigError: nobody does.
    """
    try:
        parts = urlsplit(address if "://" in address else f"//{address}")
        if parts.hostname is not None and parts.port is not None:  # and not "auto"
            socket.create_connection((parts.hostname, parts.port), timeout=_REACH_S).close()
    except (OSError, ValueError) as error:
        raise ConfigError(f"Ray cannot be reached at {address} ({first_line(error)})") from None


@contextmanager
def cluster(cpus: int) -> Iterator[None]:
    """Have Ray inside the block: the one that this process has, or else as of ``connect``.

    Args:
        cpus: as of ``connect``.

    Raises:
        ConfigError: Ray is not installed, cannot be reached, or does not start.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield
        return
    connect(ray, cpus, logging_level="warning", log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()
