"""A PgBouncer before a PostgreSQL, in its mode ``transaction``: each transaction may come to another session."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from free_ports import free_port
from postgres import own_user
from programs import missing, program

_CONFIGURATION = """\
[databases]
* = host=127.0.0.1 port={target} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_prepared_statements = 0
server_round_robin = 1
"""


@contextmanager
def pgbouncer(url: str) -> Iterator[str]:
    """Yield the URL of a database behind it; the test is left out where it is not installed."""
    if missing("pgbouncer"):
        pytest.skip(missing("pgbouncer"))
    address, port = sa.make_url(url), free_port()
    with tempfile.TemporaryDirectory(prefix="laplora-pgbouncer-") as temporary:
        file = Path(temporary, "pgbouncer.ini")
        file.write_text(_CONFIGURATION.format(target=address.port, user=address.username, port=port))
        for path in (file.parent, file):
            path.chmod(0o755)
        command = [str(program("pgbouncer")), "-q", str(file)]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, **own_user()) as process:  # type: ignore[call-overload]
            try:
                yield address.set(port=port).render_as_string()
            finally:
                process.terminate()
