"""Steps of a run, each a process with a limit, and their report: one file, in which what passed is not run again.

A step says what it found on its output: a line ``record: JSON`` is a figure, ``fact: JSON`` an object of words. Exit
status 77 means that it cannot run here, for the reason of its last line. So a step that is stopped keeps its figures.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.provenance import ROOT
from laplora.files.atomic import write_json

REPORT = "gpu-report.json"
SKIPPED = 77
#: Most seconds of a step's limit in which it may end by itself, and most characters of its output that are kept.
GRACE_S, TAIL = 15.0, 6000


class SkipStep(Exception):
    """A step cannot run here; the message says why."""


@dataclass(frozen=True)
class Step:
    """A command, and the seconds after which it is stopped."""

    name: str
    command: Sequence[str]
    limit_s: float


def run_all(steps: Sequence[Step], folder: Path, head: Mapping[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """Run the steps that have not passed yet; return the report, which is written after each of them.

    Args:
        head: of the report. The results of an earlier one are kept if it has the same.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM; the report has what ended before, and what the stopped step found.
    """
    path = folder / REPORT
    before: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    known = before["steps"] if before.get("head") == head else {}
    report = {"head": head, "steps": {step.name: known[step.name] for step in steps if step.name in known}}
    for step in steps:
        if (found := report["steps"].get(step.name, {})).get("status") != "passed":
            say(f"{step.name}, at most {step.limit_s:.0f} s ...")
            found = report["steps"][step.name] = run_step(step, folder)
            write_json(path, report)
        say(f"{step.name}: {found['status']} in {found['seconds']:.0f} s. {found['reason']}".strip())
        if found["status"] == "interrupted":
            raise KeyboardInterrupt
    return report


def run_step(step: Step, folder: Path) -> dict[str, Any]:
    """Run one step to its end or its limit; return its status, why, seconds, figures and the end of its output."""
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{step.name.replace(' ', '-')}.log"
    begun, grace = time.monotonic(), min(GRACE_S, step.limit_s / 4)
    with log.open("wb") as output:
        process = subprocess.Popen(
            step.command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(step.limit_s - grace)
            status = {0: "passed", SKIPPED: "skipped"}.get(code, "failed")
        except subprocess.TimeoutExpired:
            status = "timeout"
        except KeyboardInterrupt:
            status = "interrupted"
        finally:
            end(process, grace)
    text = log.read_text(encoding="utf-8", errors="replace")
    lines = [line for line in text.splitlines() if not line.startswith(("record: ", "fact: "))]
    reasons = {"passed": "", "timeout": f"It was stopped at its limit of {step.limit_s:.0f} s", "interrupted": ""}
    last = next((line for line in reversed(lines) if line.strip()), "It wrote nothing")
    return {
        "status": status,
        "reason": scrubbed(reasons.get(status, last)),
        "seconds": round(time.monotonic() - begun, 1),
        "facts": {
            key: json.loads(scrubbed(json.dumps(value))) for fact in said(text, "fact") for key, value in fact.items()
        },
        "records": list(said(text, "record")),
        "tail": scrubbed("\n".join(lines))[-TAIL:],
    }


def end(process: subprocess.Popen[bytes], grace: float) -> None:
    """End a step and all that it started: by SIGINT, so that it cleans up, and after the seconds of grace for good."""
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(grace)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        pass
    finally:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def said(text: str, kind: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of the whole lines of one kind."""
    for line in re.findall(rf"^{kind}: (\{{.*\}})$", text, re.MULTILINE):
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def scrubbed(text: str) -> str:
    """Return text without folders and addresses of this machine, its name and its user's."""
    text = text.replace(f"{ROOT}{os.sep}", "")
    text = re.sub(r"(?<![\w.:/~-])(?:~|/[\w.+@~-]+)(?:/[\w.+@~-]+)*/(?=[\w.+@~-])", "", text)
    text = re.sub(r"(?<![\w.])(?!127\.)\d+\.\d+\.\d+\.\d+(?![\w.])", "ADDRESS", text)
    for name, instead in ((socket.gethostname(), "HOST"), (Path.home().name, "USER")):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", instead, text) if name else text
    return text
