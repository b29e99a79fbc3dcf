"""Servers that tests read from and write to: an S3 store."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import httpx
import pytest


@contextmanager
def object_server(bucket: str) -> Iterator[dict[str, str]]:
    """Run a real S3 server with one bucket; yield the environment of its clients."""
    program = shutil.which("moto_server")
    if program is None:
        pytest.skip("moto_server is not installed: pip install 'moto[server]' in an environment of its own")
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [program, "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            give_up = time.monotonic() + 120
            while True:
                assert process.poll() is None
                assert time.monotonic() < give_up
                try:
                    assert httpx.put(f"{url}/{bucket}", timeout=5).status_code == 200
                    break
                except httpx.TransportError:
                    time.sleep(0.1)
            yield {
                "AWS_ENDPOINT_URL": url,
                "AWS_ALLOW_HTTP": "true",
                "AWS_ACCESS_KEY_ID": "someone",
                "AWS_SECRET_ACCESS_KEY": "unmistakable",
                "AWS_DEFAULT_REGION": "us-east-1",
            }
        finally:
            process.terminate()
