"""Faults of a real process: what it leaves with, and that it says it is alive for as long as it is."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from server_process import HALVES, Start, half_a_request, in_flight, predict
from serving import code

from service.exit_status import ExitStatus


def test_a_lost_device_answers_what_is_open_and_ends_the_process(start: Start) -> None:
    """A body that never comes does not hold it up."""
    process = start("--leave-s", "2")
    with process.client() as client:
        assert predict(client).status_code == 200
        with half_a_request(client) as whole_later, half_a_request(client):
            in_flight(client, 2)
            assert code(predict(client, "99666")) == (503, "device_fault")
            response = client.get("/health/ready")
            assert code(response) == (503, "device_fault")
            assert int(response.headers["retry-after"]) >= 1
            assert code(predict(client)) == (503, "device_fault")
            assert client.get("/health/live").status_code == 200
            whole_later.send(HALVES[1])
            assert b"device_fault" in whole_later.getresponse().read()
            assert process.left() == ExitStatus.DEVICE_FAULT
    assert process.event("device_fault")["error"] == "RuntimeError"
    assert "SECRET" not in process.log
    assert "Traceback" not in process.log


def test_a_device_that_hangs_answers_what_is_open_and_ends_the_process(start: Start, gate: Path) -> None:
    """The gate is never opened again."""
    process = start("--stall-s", "4", "--hang-s", "4", "--batch-tokens", "1", FAKE_GATE=str(gate))
    with process.client() as client, ThreadPoolExecutor() as pool:
        gate.unlink()
        # Whichever comes first hangs, and the other waits behind it.
        for future in [pool.submit(predict, client) for _ in range(2)]:
            assert code(future.result()) == (503, "device_fault")
        assert process.left() == ExitStatus.DEVICE_FAULT
    fault = process.event("device_fault")
    assert fault["error"] == "DeviceHungError"
    # Where it hangs: the frames are the device thread's.
    assert any("fake_server.py" in frame and "predict" in frame for frame in fault["frames"])  # type: ignore[attr-defined]


def test_a_device_that_hangs_or_is_lost_at_the_first_load(start: Start, tmp_path: Path) -> None:
    hanging = start("--stall-s", "0.1", "--hang-s", "0.5", FAKE_GATE=str(tmp_path / "never"))
    lost = start(FAKE_BROKEN="fault")
    assert [process.left() for process in (hanging, lost)] == [ExitStatus.DEVICE_FAULT] * 2


def test_exit_statuses_are_what_is_documented() -> None:
    """They are in the help and in docker's and systemd's files of other people: they never change."""
    assert {status.name: int(status) for status in ExitStatus} == {
        "CLEAN": 0,
        "START_FAILED": 1,
        "USAGE": 2,
        "DEVICE_FAULT": 75,
    }


def test_a_start_that_fails_ends_the_process_and_says_why(start: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for flags, environment, status, said in (
            ([], {"FAKE_BROKEN": "golden"}, ExitStatus.START_FAILED, "recorded 0.5, got 0.7"),
            ([], {"FAKE_BROKEN": "bug"}, ExitStatus.START_FAILED, "KeyError"),
            (["--artifact", "nobody"], {}, ExitStatus.USAGE, "nobody: give --artifact a folder"),
            (["--port", str(taken.getsockname()[1])], {}, ExitStatus.START_FAILED, "address already in use"),
        ):
            process = start(*flags, **environment)
            assert process.left() == status
            assert (said in process.log, "SECRET" in process.log) == (True, False)
    assert "--port takes another one" in process.log
