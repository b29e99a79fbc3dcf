"""The wall clock may jump: deadlines, queues and drains never look at it."""

from __future__ import annotations

import re
from pathlib import Path

from server_process import is_ready, predict, starting
from serving import code

import service
from service.exit_status import ExitStatus

#: Where the wall clock is read, and why: what people or other systems compare with their own clock.
WALL_CLOCK = {
    "http/routes/vllm.py": {"time.time"},  # "created" of an answer and of a model, as vLLM has it
    "changes/board.py": {"time.time"},  # as jobs/board.py
    "changes/table.py": {"time.time"},
    "jobs/store/folder.py": {"time.time"},  # beside the times that the file system gives files
    "jobs/board.py": {"time.time"},  # times that are shown, and how long ended jobs are kept
    "jobs/store/ledger.py": {"time.time"},
    "jobs/store/disk.py": {"time.time"},
    "jobs/intake/taking.py": {"time.time"},
    "security/keyring.py": {"datetime.now"},  # the day on which a key expires
    "telemetry/tracing.py": {"time.time_ns"},  # OpenTelemetry's times of a span
}
_READS = re.compile(
    r"\btime\.(?:time|time_ns|localtime|gmtime)\b|\bdatetime\.(?:now|utcnow|today)\b|\bdate\.today\b"
    r"|\bfrom time import.*"
)


def test_the_wall_clock_is_read_only_where_it_is_listed() -> None:
    root = Path(service.__file__).parent
    reads = {str(p.relative_to(root)): set(_READS.findall(p.read_text(encoding="utf-8"))) for p in root.rglob("*.py")}
    assert {name: clocks for name, clocks in reads.items() if clocks} == WALL_CLOCK


def test_a_process_whose_clock_jumps_keeps_deadlines_and_drains(tmp_path: Path) -> None:
    """Each look at the wall clock is a year before or after the one before."""
    gate = tmp_path / "gate"
    gate.touch()
    with starting(tmp_path) as start:
        process = start(FAKE_CLOCK="1", FAKE_GATE=str(gate))
        with process.client() as client:
            answers = [predict(client, f"row {i}") for i in range(5)]
            gate.unlink()
            late = client.post("/predict", json={"inputs": [{"text": "a"}], "options": {"timeout_s": 0.5}})
            gate.touch()
            answers.append(predict(client))
            assert is_ready(client)
            process.popen.terminate()
            assert process.left() == ExitStatus.CLEAN
    assert [answer.status_code for answer in answers] == [200] * 6
    assert code(late) == (504, "deadline_exceeded")
