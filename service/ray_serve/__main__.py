"""python -m service.ray_serve: serve on the cluster of RAY_ADDRESS or on one of this machine, by flags or a file."""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from laplora.errors import ConfigError, LaploraError, first_line
from laplora.execution.ray_cluster import connect, import_ray
from service.exit_status import ExitStatus
from service.ray_serve.cluster import Cluster, Flags, Sizes
from service.settings import Settings
from service.starting import can_start, parse_settings, problems, say_who_may_ask
from service.telemetry.logs import configure_logging, logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: The size of Ray's shared memory there: tickets and answers are small.
_OBJECT_STORE_BYTES = 256 * 2**20


def main() -> int:
    """Serve until Ctrl-C or SIGTERM; return the process's exit status. Servers on this machine drain first."""
    arguments, here = sys.argv[1:], not os.environ.get("RAY_ADDRESS")
    sizes: Sizes
    cluster_of: Callable[[float], Cluster]
    if len(arguments) == 1 and not arguments[0].startswith("-"):
        from_file, settings = _read(arguments[0])
        sizes, cluster_of = from_file, lambda gpus: from_file
    else:
        flags = parse_settings(Flags, arguments)
        settings, given = flags, Flags.given(arguments)
        sizes, cluster_of = flags, lambda gpus: flags.cluster(given, gpus)
    configure_logging(settings.log_level, settings.log_format)
    if here and not can_start(settings):
        return ExitStatus.USAGE
    try:
        ray = import_ray("ray.serve")
        if not here:
            say_who_may_ask(settings)  # what else is looked at is the nodes'
        elif settings.port:
            _free_port(settings.host, settings.port)  # before Ray starts, whose log is full of it
        cpus = max(math.ceil(sizes.most_scorers * sizes.scorer_cpus + sizes.ingress_cpus), os.cpu_count() or 1)
        connect(ray, cpus, object_store_bytes=_OBJECT_STORE_BYTES)
        if here:
            address = ray.get_runtime_context().gcs_address
            logger.info("a Ray cluster of this machine", extra={"event": "ray_started", "address": address})
        cluster = cluster_of(ray.cluster_resources().get("GPU", 0.0))
        with _in_a_sentence():
            port = _listen(settings.host, settings.port, math.ceil(settings.keep_alive_s))
            return _serve(cluster, settings, port, here=here)
    except ConfigError as error:
        logger.error("%s", error, extra={"event": "bad_settings"})
        return ExitStatus.USAGE
    except LaploraError as error:
        logger.error("not served: %s", error, extra={"event": "load_failed"})
        return ExitStatus.START_FAILED


def _read(file: str) -> tuple[Cluster, Settings]:
    """Return what a file says, and the server's settings with it; exits with a message for a bad one."""
    messages: Iterable[str]
    try:
        cluster = Cluster.model_validate_json(Path(file).read_bytes())
    except OSError as error:
        messages = [error.strerror or str(error)]
    except ValidationError as error:
        messages = problems(error, str)
    else:
        try:
            return cluster, Settings(**cluster.settings)
        except ValidationError as error:
            messages = problems(error, lambda name: f"settings.{name} (LAPLORA_{name.upper()})")
    for problem in messages:
        sys.stderr.write(f"python -m service.ray_serve: {file}: {problem}\n")
    raise SystemExit(int(ExitStatus.USAGE))


@contextmanager
def _in_a_sentence() -> Iterator[None]:
    """Turn what Ray and Ray Serve raise into a LaploraError of one line."""
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        yield
    except (RayError, RayServeException, RuntimeError, OSError) as error:  # of OSError: a TimeoutError of proxies
        # The text of another process's error is a traceback; its cause has the message.
        raise LaploraError(first_line(getattr(error, "cause", None) or error)[:400]) from error


def _listen(host: str, port: int, keep_alive_s: int) -> int:
    """Have Ray Serve listen, and return at which port; of one that runs already 0 is any.

    Raises:
        ConfigError: one runs already that listens elsewhere: it takes no other address.
    """
    from ray import serve
    from ray.serve.context import _get_global_client  # Ray has no public word for where Ray Serve listens

    running = _get_global_client(raise_if_no_controller_running=False)
    port = port or (_free_port(host) if running is None else running.http_config.port)
    serve.start(http_options={"host": host, "port": port, "keep_alive_timeout_s": keep_alive_s})
    there = _get_global_client().http_config
    if (there.host, there.port) != (host, port):
        raise ConfigError(
            f"Ray Serve runs on this cluster already and listens on {there.host} port {there.port}, not on {host} port "
            f"{port}, which would have no effect: give --host {there.host} --port {there.port} if that may be"
        )
    if there.keep_alive_timeout_s < keep_alive_s:
        logger.warning(
            "Ray Serve runs on this cluster already and closes idle connections after %d s, not keep_alive_s (%d)",
            there.keep_alive_timeout_s,
            keep_alive_s,
            extra={"event": "keep_alive_ignored"},
        )
    return port


def _serve(cluster: Cluster, settings: Settings, port: int, *, here: bool) -> ExitStatus:
    from ray import serve

    from service.ray_serve.app import build

    # In the place of Ray's; and a process in the background is begun with SIGINT ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        serve.run(build(cluster), name="laplora")
        address = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}"
        logger.info("listening on %s", address, extra={"event": "listening", "address": address})
        while True:
            time.sleep(10)
    except KeyboardInterrupt:
        if here:
            _drain(serve, settings.request_timeout_s + settings.drain_s)
    logger.info("stopped", extra={"event": "stopped", "status": int(ExitStatus.CLEAN)})
    return ExitStatus.CLEAN


def _free_port(host: str, port: int = 0) -> int:
    """Return a port that is free, of 0 any; LaploraError: it cannot be listened on."""
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
            port = taken.getsockname()[1]
            return port
    except OSError as error:
        raise LaploraError(f"cannot listen on {host} port {port}: {error.strerror or error}") from None


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
