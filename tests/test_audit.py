"""The audit of ``make check``: it fails for a finding, and says so where it could not look."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
STUB = """
import json, os, sys
from pathlib import Path
service = sys.argv[sys.argv.index("--vulnerability-service") + 1]
answers = json.loads(os.environ["ANSWERS"]).get(service)
if answers is None:
    sys.exit("unreachable")
print(json.dumps({"dependencies": answers["probe" if "--requirement" in sys.argv else "all"]}))
sys.exit(1 if "PYSEC" in os.environ["ANSWERS"] else 0)
"""
KNOWN = {"name": "pip", "version": "23.2.1", "vulns": []}
UNKNOWN = {"name": "pip", "skip_reason": "not found"}
FINDING = {"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2.0"]}
BAD = {"name": "thing", "version": "1.0", "vulns": [FINDING]}


def audited(tmp_path: Path, answers: dict[str, Any]) -> tuple[int, list[str]]:
    """Return the script's exit status and lines, with pip-audit's answers by service."""
    (tmp_path / "pip_audit.py").write_text(STUB)
    variables = {**os.environ, "PYTHONPATH": str(tmp_path), "ANSWERS": json.dumps(answers)}
    done = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "audit.py")], env=variables, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout.splitlines()


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"pypi": {"probe": [UNKNOWN]}},
        {"pypi": {"probe": [UNKNOWN]}, "osv": {"probe": [UNKNOWN]}},
    ],
    ids=["nothing answers", "the index keeps none", "no service keeps any"],
)
def test_it_says_in_one_line_that_it_could_not_look(answers: dict[str, Any], tmp_path: Path) -> None:
    status, (line,) = audited(tmp_path, answers)
    assert (status, line.startswith("audit: NOT DONE")) == (0, True)


@pytest.mark.parametrize("service", ["pypi", "osv"])
def test_it_passes_over_what_is_in_no_database_and_fails_for_a_finding(service: str, tmp_path: Path) -> None:
    status, (line,) = audited(tmp_path, {service: {"probe": [KNOWN], "all": [KNOWN, UNKNOWN]}})
    assert (status, line) == (0, f"audit: 1 packages by {service}: 0 known vulnerabilities, 0 accepted")
    status, lines = audited(tmp_path, {service: {"probe": [KNOWN], "all": [KNOWN, BAD]}})
    assert status == 1
    assert lines[0] == "audit: thing 1.0: PYSEC-1, fixed in: 2.0"
    status, (line,) = audited(tmp_path, {service: {"probe": [KNOWN], "all": [UNKNOWN]}})
    assert (status, line.startswith(f"audit: {service} can be reached and says nothing")) == (1, True)


def test_a_finding_is_accepted_up_to_its_day() -> None:
    audit = runpy.run_path(str(ROOT / ".ci" / "audit.py"))
    answers = {"reachable": lambda: "pypi", "ask": lambda *_: [BAD]}
    for day, status in (("2999-01-01", 0), ("2020-01-01", 1)):
        audit["main"].__globals__.update(answers, ACCEPTED={"CVE-1": ("not reached", day)})
        assert audit["main"]() == status
