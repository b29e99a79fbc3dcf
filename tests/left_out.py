"""A run that may leave nothing out: ``python -m pytest --no-skips-but gpu``.

It fails for every skipped test that does not have this marker, so that a package which is no longer installed in
continuous integration cannot silently take its tests with it.
"""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--no-skips-but", metavar="MARKER", help="fail where a test without this marker is skipped")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Name what was skipped without the marker and fail, in the process that the results come together in."""
    allowed = session.config.getoption("--no-skips-but")
    if allowed is None or hasattr(session.config, "workerinput"):
        return
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    assert terminal is not None
    refused = [r for r in terminal.getreports("skipped") if allowed not in getattr(r, "keywords", ())]
    for report in refused:
        terminal.write_line(f"\nmay not be left out: {report.nodeid}", red=True)
    if refused and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
