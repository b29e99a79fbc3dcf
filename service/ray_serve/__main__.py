"""python -m service.ray_serve FILE: serve what a JSON file says, on the cluster of RAY_ADDRESS or on this machine."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from service.exit_status import ExitStatus

#: How often Ray is started on this machine before that is given up.
_STARTS = 3
#: Of Ray's shared memory there: tickets and answers are small.
_OBJECT_STORE_BYTES = 256 * 2**20


def main() -> int:
    """Serve until Ctrl-C or SIGTERM; return the process's exit status. What serves on this machine drains first."""
    parser = argparse.ArgumentParser(prog="python -m service.ray_serve", description=__doc__)
    parser.add_argument("file", type=Path, help="JSON file of the cluster, as docs/ray.md has it")
    file: Path = parser.parse_args().file
    # Before Ray is imported: it sends nothing to its makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray import serve

    from service.ray_serve.app import Cluster, build
    from service.settings import Settings
    from service.telemetry.logs import configure_logging, logger

    try:
        cluster = Cluster.model_validate_json(file.read_bytes())
        settings = Settings(**cluster.settings)
    except (OSError, ValidationError) as error:
        sys.stderr.write(f"python -m service.ray_serve: {error}\n")
        return ExitStatus.USAGE
    here = "RAY_ADDRESS" not in os.environ
    if here:
        _start_here(ray)
        address = ray.get_runtime_context().gcs_address
        configure_logging(settings.log_level, settings.log_format)
        logger.info("a Ray cluster of this machine", extra={"event": "ray_started", "address": address})
    serve.start(http_options={"host": settings.host, "port": settings.port})
    # In the place of Ray's; and a process in the background is begun with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        serve.run(build(cluster), name="laplora", blocking=True)
    except KeyboardInterrupt:
        if here:
            _drain(serve, settings.request_timeout_s + settings.drain_s)
    return ExitStatus.CLEAN


def _start_here(ray: Any) -> None:
    """Start Ray on this machine; on a busy one it may give up on a node of its own, so it is tried again."""
    for left in reversed(range(_STARTS)):
        try:
            ray.init(include_dashboard=False, object_store_memory=_OBJECT_STORE_BYTES)
            return
        except Exception:  # Ray has no class for it
            ray.shutdown()
            if not left:
                raise


def _drain(serve: Any, leave_s: float) -> None:
    """Stop the application once its requests are answered; a second signal ends the wait, and ``leave_s`` do."""
    give_up = time.monotonic() + leave_s
    with suppress(KeyboardInterrupt):
        while time.monotonic() < give_up:
            with suppress(TimeoutError):  # Ray Serve waits a minute
                serve.delete("laplora")
                return


if __name__ == "__main__":
    sys.exit(main())
