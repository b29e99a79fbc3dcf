"""The shipped nginx configuration in front of a server, as a process of a user without rights on a free port."""

from __future__ import annotations

import os
import re
import shlex
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import httpx
import yaml
from free_ports import free_port
from programs import needs, program
from server_process import ROOT

TEMPLATE = ROOT / "docker" / "nginx.conf.template"
COMPOSE = ROOT / "docker" / "compose.proxy.yaml"
needs_nginx = needs("nginx", "openssl")
#: The user "nobody", where the tests themselves have rights to give away.
_NOBODY = 65534


def defaults() -> dict[str, str]:
    """Return the values that compose fills the template with."""
    environment = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]["proxy"]["environment"]
    return {name: str(value) for name, value in environment.items() if name.startswith("PROXY_")}


def filled_in(values: dict[str, str]) -> str:
    """Return the configuration; a value that is missing is a KeyError."""
    return re.sub(r"\$\{(PROXY_\w+)\}", lambda match: values[match[1]], TEMPLATE.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Proxy:
    """A running nginx.

    Attributes:
        port: that it listens on, on every address.
        folder: of its configuration, certificate, temporary files and logs.
    """

    port: int
    folder: Path

    @cached_property
    def tls(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.folder / "tls.crt"))

    def client(self, *, source: str = "127.0.0.1") -> httpx.Client:
        """Return a client whose connections come from this address of the loopback network."""
        transport = httpx.HTTPTransport(verify=self.tls, local_address=source)
        return httpx.Client(base_url=f"https://127.0.0.1:{self.port}", transport=transport, timeout=60)

    @contextmanager
    def connected(self, source: str = "127.0.0.1") -> Iterator[ssl.SSLSocket]:
        """Yield a connection that comes from this address."""
        raw = socket.create_connection(("127.0.0.1", self.port), source_address=(source, 0))
        with self.tls.wrap_socket(raw, server_hostname="127.0.0.1") as connection:
            yield connection

    @property
    def log(self) -> str:
        return "".join((self.folder / name).read_text(encoding="utf-8") for name in ("access.log", "errors.log"))


def certify(folder: Path) -> None:
    """Write a certificate for 127.0.0.1 that signs itself, and its key."""
    command = shlex.split(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost "
        "-addext subjectAltName=IP:127.0.0.1 -keyout tls.key -out tls.crt"
    )
    subprocess.run(command, check=True, capture_output=True, cwd=folder)


@contextmanager
def proxy_before(upstream_port: int, **values: object) -> Iterator[Proxy]:
    """Yield nginx in front of a port of this machine.

    Args:
        values: of the template, by name without ``PROXY_``, in the place of compose's.
    """
    user = _NOBODY if os.geteuid() == 0 else None
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="laplora-proxy-") as name:
        folder = Path(name)
        given = {
            "UPSTREAM": f"127.0.0.1:{upstream_port}",
            "PORT": port,
            "CERTIFICATE": folder / "tls.crt",
            "CERTIFICATE_KEY": folder / "tls.key",
            "TEMP": folder,
            "ACCESS_LOG": folder / "access.log",
            **values,
        }
        certify(folder)
        configuration = folder / "nginx.conf"
        filled = filled_in(defaults() | {f"PROXY_{k}": str(v) for k, v in given.items()})
        configuration.write_text(filled, encoding="utf-8")
        if user is not None:
            for path in (folder, *folder.iterdir()):
                os.chown(path, user, user)
        command = [str(program("nginx")), "-e", "stderr", "-c", str(configuration), "-p", str(folder)]
        tested = subprocess.run([*command, "-t"], user=user, group=user, capture_output=True, text=True, check=False)
        assert tested.returncode == 0, tested.stderr
        with (folder / "errors.log").open("w") as errors:
            popen = subprocess.Popen([*command, "-g", "daemon off;"], user=user, group=user, stderr=errors)
        proxy = Proxy(port, folder)
        try:
            while not _answers(proxy):
                assert popen.poll() is None, proxy.log
                time.sleep(0.01)
            yield proxy
        finally:
            popen.terminate()
            popen.wait()


def _answers(proxy: Proxy) -> bool:
    """Tell whether it is this nginx, known by its certificate, that listens on the port."""
    with suppress(OSError), proxy.connected():
        return True
    return False
