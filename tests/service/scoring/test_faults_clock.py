"""The wall clock may jump: deadlines, queues and drains never look at it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from server_process import is_ready, predict, starting
from serving import code

import service
from service.exit_status import ExitStatus

#: Where the wall clock is read, and why: what people or other systems compare with their own clock.
WALL_CLOCK = {
    "jobs/board.py": {"time.time"},  # times that are shown, and how long ended jobs are kept
    "jobs/ledger.py": {"time.time"},
    "security/keyring.py": {"datetime.now"},  # the day on which a key expires
    "telemetry/tracing.py": {"time.time_ns"},  # OpenTelemetry's times of a span
}
_READS = {
    "time.time",
    "time.time_ns",
    "time.localtime",
    "time.gmtime",
    "datetime.now",
    "datetime.utcnow",
    "datetime.today",
    "date.today",
}


def reads(source: str) -> set[str]:
    """Return which clocks a source file reads, as ``module.function``."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            owner = node.value.attr if isinstance(node.value, ast.Attribute) else getattr(node.value, "id", "")
            found.add(f"{owner}.{node.attr}")
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{name.name}" for name in node.names}
    return found & _READS


@pytest.mark.parametrize(
    ("source", "clock"),
    [
        ("import time\ntime.time()", "time.time"),
        ("from time import time", "time.time"),
        ("import datetime\ndatetime.datetime.now()", "datetime.now"),
        ("import datetime\ndatetime.date.today()", "date.today"),
    ],
)
def test_the_search_finds_what_it_looks_for(source: str, clock: str) -> None:
    assert reads(source) == {clock}
    assert reads("import time\ntime.monotonic()") == set()


def test_the_wall_clock_is_read_only_where_it_is_listed() -> None:
    root = Path(service.__file__).parent
    found = {str(p.relative_to(root)): reads(p.read_text(encoding="utf-8")) for p in sorted(root.rglob("*.py"))}
    assert {name: clocks for name, clocks in found.items() if clocks} == WALL_CLOCK


def test_a_process_whose_clock_jumps_keeps_deadlines_and_drains(tmp_path: Path) -> None:
    """Each look at the wall clock is a year before or after the one before."""
    gate = tmp_path / "gate"
    with starting(tmp_path, "faulty_server.py") as start:
        process = start("--request-timeout-s", "2", FAULT_CLOCK="1", FAULT_GATE=str(gate))
        with process.client() as client:
            answers = [predict(client, f"row {i}") for i in range(5)]
            late = predict(client, "668")
            gate.touch()
            answers.append(predict(client))
            assert is_ready(client)
            process.popen.terminate()
            assert process.left() == ExitStatus.CLEAN
    assert [answer.status_code for answer in answers] == [200] * 6
    assert code(late) == (504, "deadline_exceeded")
