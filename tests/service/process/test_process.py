"""A start that fails: the process ends, and says why."""

from __future__ import annotations

import socket

import pytest
from server_process import Start

from service.exit_status import ExitStatus


@pytest.mark.parametrize(
    ("flags", "environment", "status", "said"),
    [
        ([], {"FAKE_BROKEN": "golden"}, ExitStatus.START_FAILED, "recorded 0.5, got 0.7"),
        (["--artifact", "nobody"], {}, ExitStatus.USAGE, "nobody: give --artifact a folder"),
    ],
)
def test_an_artifact_that_cannot_be_served_ends_the_process_and_is_named(
    start: Start, flags: list[str], environment: dict[str, str], status: ExitStatus, said: str
) -> None:
    process = start(*flags, **environment)
    assert process.left() == status
    assert said in process.log


def test_taken_port_ends_the_process(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        process = start("--port", str(taken.getsockname()[1]))
        assert process.left() == ExitStatus.START_FAILED
    assert "--port takes another one" in process.log
    assert "address already in use" in process.log
