"""``make gpu`` without a GPU: steps that pass, fail, hang or cannot run, what is kept, sent and published."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import models, publish
from benchmarks.gpu.steps import REPORT, SkipStep, Step, run_all, scrubbed
from benchmarks.harness.record import Conditions, Record, read, write
from benchmarks.harness.timing import exactly
from laplora.errors import DataError

MEASURED = {"date": "2026-01-01", "commit": "abc", "artifact": "a", "command": "c", "threads": "2", "versions": "t 2"}
CARD = Conditions("NVIDIA A100-SXM4-80GB", MEASURED)
FIGURE = CARD.record("gpu, Ray: latency, MAP, 1 input, median", exactly(3.0), "ms")
HEAD = {"format": publish.FORMAT, "whole": True}
RECORD = f"echo 'record: {json.dumps(asdict(FIGURE))}'"


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Ctrl-C interrupts, also in a worker of the tests; afterwards all is as it was."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def steps(limit_s: float = 60.0, **scripts: str) -> list[Step]:
    return [Step(name, ["sh", "-c", script], limit_s) for name, script in scripts.items()]


@pytest.mark.process
def test_steps_pass_fail_and_are_skipped_and_the_next_run_does_what_did_not_pass(tmp_path: Path) -> None:
    scripts = {
        "passes": f'{RECORD}; echo \'fact: {{"driver": "550"}}\'',
        "fails": "echo done; echo /data/somebody/model.bin is broken; exit 1",
        "cannot": "echo 'ray is not installed'; exit 77",
    }
    said: list[str] = []
    run_all(steps(**scripts), tmp_path, HEAD, said.append)
    found = json.loads((tmp_path / REPORT).read_text(encoding="utf-8"))["steps"]
    assert {name: (step["status"], step["reason"]) for name, step in found.items()} == {
        "passes": ("passed", ""),
        "fails": ("failed", "model.bin is broken"),
        "cannot": ("skipped", "ray is not installed"),
    }
    assert (found["passes"]["records"], found["passes"]["facts"]) == ([asdict(FIGURE)], {"driver": "550"})
    assert found["fails"]["tail"] == "done\nmodel.bin is broken"
    again = steps(**dict.fromkeys(scripts, "exit 0") | {"passes": "exit 1"})
    assert {step["status"] for step in run_all(again, tmp_path, HEAD, said.append)["steps"].values()} == {"passed"}
    other = run_all(again, tmp_path, HEAD | {"commit": "another"}, said.append)
    assert other["steps"]["passes"]["status"] == "failed", "what another commit measured is not kept"


@pytest.mark.process
def test_a_step_that_hangs_is_stopped_with_all_that_it_started_and_keeps_its_figures(tmp_path: Path) -> None:
    script = f"trap '' INT; sleep 600 & echo $! > {tmp_path}/pid; {RECORD}; while :; do wait; done"
    (found,) = run_all(steps(8.0, hangs=script), tmp_path, HEAD, print)["steps"].values()
    assert (found["status"], found["records"]) == ("timeout", [asdict(FIGURE)])
    assert found["reason"] == "It was stopped at its limit of 8 s"
    pid = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.process
def test_ctrl_c_keeps_what_is_there_and_the_same_command_goes_on(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_all(steps(first=RECORD, second="sleep 2; kill -INT $PPID; sleep 600", third=RECORD), tmp_path, HEAD, print)
    report = json.loads((tmp_path / REPORT).read_text(encoding="utf-8"))["steps"]
    assert {name: step["status"] for name, step in report.items()} == {"first": "passed", "second": "interrupted"}
    report = run_all(steps(first="exit 1", second=RECORD, third=RECORD), tmp_path, HEAD, print)["steps"]
    assert [step["status"] for step in report.values()] == ["passed"] * 3


def test_what_is_sent_names_no_folder_machine_or_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box7")
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ada"))
    text = (
        f"{gpu.provenance.ROOT}/tests/a.py:3 on box7, 10.2.0.7: ada read ~/x/y.bin, /home/ada/z, http://127.0.0.1:80/a"
    )
    assert scrubbed(text) == "tests/a.py:3 on HOST, ADDRESS: USER read y.bin, z, http://127.0.0.1:80/a"


@pytest.mark.process
def test_without_a_card_one_line_says_so_and_a_driver_that_torch_cannot_use_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "SMI", ("no-such-program",))
    assert gpu.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no NVIDIA card here" in line
    assert gpu.TRIAL in line
    listed = gpu.driver([sys.executable, "-c", "print('NVIDIA L4, 23034 MiB, 535.54')"])
    assert "finds no card" in str(gpu.no_card(SimpleNamespace(is_available=lambda: False), listed))
    assert gpu.no_card(SimpleNamespace(is_available=lambda: True), listed) is None
    assert sum(gpu.LIMITS.values()) == 30 * 60


def test_the_card_and_what_fits_it() -> None:
    properties = SimpleNamespace(name="NVIDIA L4", major=8, minor=9, total_memory=23 * models.GIB)
    cuda = SimpleNamespace(device_count=lambda: 2, get_device_properties=lambda _: properties)
    _, facts, count, memory = gpu.card(cuda, CARD)
    assert facts == {"cards": ["NVIDIA L4, capability 8.9"] * 2}
    assert [(one.value, one.baseline) for one in (count, memory) if isinstance(one, Record)] == [
        (2.0, "cards"),
        (23.0, "GiB"),
    ]
    count_of = models.counted("Llama-3-8B")
    assert count_of == (5.72e9, 2.84e9, 1.69e9, 6.40e9)
    whole = count_of._replace(weights=16.06e9)  # in bfloat16
    assert [models.fitting(models.FULL, whole, size * models.GIB).rows for size in (80, 24)] == [(8, 32), (8,)]
    with pytest.raises(SkipStep, match=r"it takes 18.9 GB, of which 14.5 may be used"):
        models.fitting(models.FULL, whole, 16 * models.GIB)


def test_outcomes_of_tests_are_read_with_the_reasons_of_skips() -> None:
    lines = [
        "a.py::one[a b] PASSED   [ 50%]",
        "a.py::two SKIPPED (no CUDA device) [ 99%]",
        "a.py::x FAILED [1%]",
        "a b",
    ]
    outcomes = {test: outcome for line in lines for test, outcome in gpu.outcomes(line).items()}
    assert outcomes == {"a.py::one[a b]": "passed", "a.py::two": "skipped: no CUDA device", "a.py::x": "failed"}


@pytest.mark.process  # asks git for the commit
@pytest.mark.parametrize("step", ["Phi-2 NF4", "Phi-3-mini-128k bfloat16"])
def test_a_model_is_measured_on_a_cpu(step: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("bitsandbytes")
    assert gpu.main([*gpu.TRIAL.split(), "--step", step]) == 0
    lines = [line.removeprefix("record: ") for line in capsys.readouterr().out.splitlines() if "record: " in line]
    values = {record["name"].partition(": ")[2]: record["value"] for record in map(json.loads, lines)}
    for answer in ("MAP", "Laplace"):
        assert values[f"latency, {answer}, 1 x 16 tokens, median"] > 0
        assert values[f"throughput, {answer}, 2 x 16 tokens"] > 0
        assert values[f"memory, {answer}, 2 x 16 tokens"] > 0
    assert values["fit of 4 rows of 16 tokens, 2 a batch"] > 0
    assert values["memory, training step, 6 x 16 tokens"] > 0


@pytest.mark.process
def test_a_trial_of_all_steps_ends_in_a_file_that_is_not_published(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu.provenance, "SCRATCH", scratch / "bench-quick")
    monkeypatch.setattr(gpu, "LIMITS", {"card": 100, "two cards": 100})
    assert gpu.main(gpu.TRIAL.split()) == 0
    assert "2 skipped" in capsys.readouterr().out
    assert gpu.main(["--publish", str(scratch / "gpu-trial" / REPORT)]) == 2
    assert "is of a trial" in capsys.readouterr().err


def test_a_sent_report_takes_the_place_of_the_cards_figures_on_every_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in publish.SENTENCES:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((publish.ROOT / name).read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(publish, "ROOT", tmp_path)
    monkeypatch.setattr(publish, "FOLDER", tmp_path)
    count = "gpu, Phi-2's shape, 32 layers, NF4: memory, fit of 64 rows of 64 tokens, 8 a batch, over the count"
    others = [asdict(Conditions("AMD", MEASURED).record("fit: x", exactly(1.0), "ms"))]
    write([*others, asdict(CARD.record("gpu, image: old", exactly(1.0), "ms"))], tmp_path)
    figures = [asdict(FIGURE), asdict(CARD.record(count, exactly(1.02), "the count"))]
    file = tmp_path / "sent.json"

    def sent(*records: dict[str, Any]) -> Path:
        file.write_text(
            json.dumps({"head": HEAD, "steps": {"a": {"status": "passed", "records": records}}}), encoding="utf-8"
        )
        return file

    assert gpu.main(["--publish", str(sent(*figures))]) == 0
    assert read(tmp_path) == [*others, *figures]
    assert "on NVIDIA A100-SXM4-80GB a fit takes 1.02 to 1.02 of it" in (tmp_path / "docs/models.md").read_text()
    assert "No image has run on a GPU yet" in (tmp_path / "docker/README.md").read_text()
    assert (
        "It ran on a GPU ([NVIDIA A100-SXM4-80GB](../benchmarks/RESULTS.md))" in (tmp_path / "docs/ray.md").read_text()
    )
    for changes in ({"name": "fit: x"}, {"value": "1"}, {"hardware": "<script>"}):
        with pytest.raises(DataError):
            publish.publish(sent(figures[0] | changes))
    assert read(tmp_path) == [*others, *figures]
