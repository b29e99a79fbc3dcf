"""Shared set-up. A process that only shares the tests out among workers needs neither torch nor the fixtures."""

from __future__ import annotations

import pytest

pytest_plugins = [
    "exhaustive",  # what takes minutes is left to make test-exhaustive
    "skips",  # whether tests may be skipped
    "markers",  # real and process
]


def pytest_configure(config: pytest.Config) -> None:
    """Load the fixtures where tests run."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        config.pluginmanager.import_plugin("shared_fixtures")
        config.pluginmanager.import_plugin("heap")
