"""What a run left out: said at its end, and refused where nothing may be left out.

    python -m pytest --no-skips-but gpu

fails for every skipped test that does not have this marker, so that a package which is no longer installed in
continuous integration cannot silently take its tests with it.
"""

from __future__ import annotations

from collections import Counter

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--no-skips-but", metavar="MARKER", help="fail where a test without this marker is skipped")


def reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return why a test was skipped."""
    _, _, text = report.longrepr if isinstance(report.longrepr, tuple) else ("", 0, str(report.longrepr))
    return str(text).removeprefix("Skipped: ")


class LeftOut:
    """Collects what was skipped, by reason, in the process that the results come together in."""

    def __init__(self, allowed: str | None) -> None:
        self.allowed = allowed
        self.reasons: Counter[tuple[str, str]] = Counter()
        self.refused: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._see(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._see(report)

    def _see(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            kind = "test" if isinstance(report, pytest.TestReport) else "module"
            self.reasons[kind, reason(report)] += 1
            if self.allowed is not None and self.allowed not in getattr(report, "keywords", ()):
                self.refused.append(f"{report.nodeid}: {reason(report)}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.refused and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.reasons:
            terminalreporter.section("left out here")
        for (kind, text), count in sorted(self.reasons.items()):
            terminalreporter.line(f"{count} {kind}{'s' if count > 1 else ''}: {text}")
        for line in self.refused:
            terminalreporter.line(f"may not be left out: {line}", red=True)


def pytest_configure(config: pytest.Config) -> None:
    """Watch the run, but not in the workers that share its tests out."""
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(LeftOut(config.getoption("--no-skips-but")))
