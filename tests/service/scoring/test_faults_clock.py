"""The wall clock may jump: deadlines, queues and drains never look at it."""

from __future__ import annotations

from pathlib import Path

from server_process import is_ready, predict, starting
from serving import code

from service.exit_status import ExitStatus


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
