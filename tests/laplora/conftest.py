"""The server process over a fake predictor that tests of the client and of ``laplora jobs`` share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from server_process import fake_artifacts, fake_server


@pytest.fixture(scope="session")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file without which the server's device waits."""
    gate = tmp_path_factory.mktemp("gate") / "gate"
    gate.touch()
    return gate


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, gate: Path) -> Iterator[str]:
    """The address of a server that takes 60 inputs a request."""
    flags = ("--max-inputs", "60", "--batch-tokens", "40")
    root = fake_artifacts(tmp_path_factory.mktemp("served"))
    with fake_server(root, *flags, FAKE_GATE=str(gate)) as process, process.client() as client:
        yield str(client.base_url)
