"""Ray for a command: the cluster that this process has, the one that ``RAY_ADDRESS`` names, or one of this machine."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from laplora.errors import ConfigError, first_line, needs

#: How often Ray is started on this machine: it gives up after 30 seconds, which a busy one may need.
_STARTS = 3
#: Memory of the objects that a cluster in this machine shares: little but the work's description goes through it.
_OBJECT_STORE_BYTES = 100 * 2**20


def import_ray(library: str = "ray") -> Any:
    """Return Ray with one of its libraries imported; ConfigError: it is not installed.

    Ray then tells its makers nothing of its use, unless the environment says otherwise.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        importlib.import_module(library)
        import ray
    except ModuleNotFoundError as error:
        raise needs("ray", error) from None
    return ray


@contextmanager
def cluster(cpus: int, *, show_output: bool = False) -> Iterator[None]:
    """Have Ray inside the block: the one that this process has, that of ``RAY_ADDRESS``, or one of this machine alone.

    Args:
        cpus: what one of this machine hands out, also where there are fewer.
        show_output: whether what the workers print is printed here too, with who said it.

    Raises:
        ConfigError: Ray is not installed, cannot be reached, or does not start.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield
        return
    quiet = {"logging_level": "warning", "log_to_driver": show_output}
    here = {"address": "local", "include_dashboard": False, "object_store_memory": _OBJECT_STORE_BYTES}
    address = os.environ.get("RAY_ADDRESS")
    options = {"address": address} if address else {**here, "num_cpus": cpus}
    for left in reversed(range(1 if address else _STARTS)):
        try:
            ray.init(**options, **quiet)
            break
        except Exception as error:  # Ray has no class for it
            ray.shutdown()
            if not left:
                what = f"cannot be reached at {address}" if address else "does not start on this machine"
                raise ConfigError(f"Ray {what} ({first_line(error)[:200]})") from error
    try:
        yield
    finally:
        ray.shutdown()
