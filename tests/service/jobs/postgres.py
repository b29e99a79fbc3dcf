"""A PostgreSQL of its own for tests, from Debian's package: in a temporary folder, as a user without rights."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from free_ports import free_port
from server_process import until

#: The one role that needs a password.
GUEST = "guest"


def own_user() -> dict[str, str]:
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
    own = own_user()
    with tempfile.TemporaryDirectory(prefix="laplora-postgres-") as temporary:
        folder, data = Path(temporary), Path(temporary) / "data"
        if own:
            shutil.chown(folder, own["user"])

        def call(program: str, *arguments: str) -> None:
            command = [str(found[-1] / program), "-D", str(data), *arguments]
            done = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, **own)  # type: ignore[call-overload]
            assert done.returncode == 0, command

        call("initdb", "-U", "laplora", "--auth=trust", "--no-sync", "-E", "UTF8")
        rules = data / "pg_hba.conf"
        rules.write_text(f"host all {GUEST} 127.0.0.1/32 scram-sha-256\n{rules.read_text()}")
        port = free_port()
        options = f"-h 127.0.0.1 -p {port} -k {folder} -c fsync=off"
        call("pg_ctl", "-w", "-t", "110", "-l", str(folder / "log"), "-o", options, "start")
        try:
            yield f"postgresql://laplora@127.0.0.1:{port}/postgres"
        finally:
            # A fast stop: a plain one waits for every client to leave. By a signal: the last test may start no process.
            running = data / "postmaster.pid"
            os.kill(int(running.read_text().split()[0]), signal.SIGINT)
            until(lambda: not running.exists())
