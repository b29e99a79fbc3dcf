"""A PostgreSQL of its own for tests, from Debian's package: in a temporary folder, as a user without rights."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from free_ports import free_port

GIVE_UP_S = 120.0
#: The one role that needs a password.
GUEST = "guest"


def _user() -> dict[str, str]:
    """Return whom to run as, where that is root: PostgreSQL refuses to."""
    names = {user.pw_name for user in pwd.getpwall()}
    found = next((name for name in ("postgres", "nobody") if name in names), None)
    if os.geteuid() == 0 and found is None:
        pytest.skip("PostgreSQL needs a user that is not root")
    return {"user": str(found)} if os.geteuid() == 0 else {}


@contextmanager
def postgres() -> Iterator[str]:
    """Yield the URL of a running, empty PostgreSQL; the test is left out where it is not installed."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[4]))
    if not found:
        pytest.skip("initdb (PostgreSQL) not installed: .ci/install_programs")
    programs, own = found[-1], _user()
    with tempfile.TemporaryDirectory(prefix="laplora-postgres-") as temporary:
        folder = Path(temporary)
        data = folder / "data"
        if own:
            shutil.chown(folder, own["user"])

        def call(*command: str) -> None:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, **own)  # type: ignore[call-overload]
            assert done.returncode == 0, done.stderr

        call(str(programs / "initdb"), "-D", str(data), "-U", "laplora", "--auth=trust", "--no-sync", "-E", "UTF8")
        rules = data / "pg_hba.conf"
        rules.write_text(f"host all {GUEST} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        port = free_port()
        options = ["-h", "127.0.0.1", "-p", str(port), "-k", str(folder), "-c", "fsync=off"]
        with subprocess.Popen(
            [str(programs / "postgres"), "-D", str(data), *options], cwd=folder, stderr=subprocess.DEVNULL, **own
        ) as process:  # type: ignore[call-overload]
            try:
                give_up = time.monotonic() + GIVE_UP_S
                ready = [str(programs / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
                while subprocess.run(ready).returncode != 0:
                    assert process.poll() is None
                    assert time.monotonic() < give_up
                    time.sleep(0.05)
                yield f"postgresql://laplora@127.0.0.1:{port}/postgres"
            finally:
                # A fast stop: a plain one would wait for every client to leave.
                process.send_signal(signal.SIGINT)
                process.wait()
