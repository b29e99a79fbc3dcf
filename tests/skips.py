"""Fails a run that skips other tests than the named ones: ``python -m pytest --no-skips-but gpu,nginx``.

It fails for every skipped test that has none of these words as its marker or in its reason, so that a package which is
no longer installed in continuous integration cannot silently take its tests with it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption(
        "--no-skips-but", metavar="WORDS", help="fail where a test is skipped with none of these as marker or in reason"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Name what was skipped for another reason and fail, in the process that the results come together in."""
    words = session.config.getoption("--no-skips-but")
    if words is None or hasattr(session.config, "workerinput"):
        return
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    assert terminal is not None
    refused = [report for report in terminal.getreports("skipped") if not allowed(report, words.split(","))]
    for report in refused:
        terminal.write_line(f"\nmay not be skipped: {report.nodeid}: {reason_of(report)}", red=True)
    if refused and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def allowed(report: pytest.TestReport | pytest.CollectReport, words: Sequence[str]) -> bool:
    """Return whether one of the words is a marker of the skipped test, or a word of its reason."""
    words_of_reason = {word.lower() for word in re.findall(r"[\w-]+", reason_of(report))}
    return any(word in getattr(report, "keywords", ()) or word in words_of_reason for word in words)


def reason_of(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return why a test was skipped."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
    return str(reason).removeprefix("Skipped: ")
