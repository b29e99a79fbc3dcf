"""What tests of the library share: a server over a fake predictor, an S3 store, and the default base's tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from remote_servers import object_server
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


@pytest.fixture(scope="session")
def object_store() -> Iterator[dict[str, str]]:
    """The environment of a client of an S3 store with the bucket ``models``."""
    with object_server("models") as environment:
        yield environment


@pytest.fixture
def s3(object_store: dict[str, str], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A folder of this test's own in that store, which the environment leads to."""
    for name, value in object_store.items():
        monkeypatch.setenv(name, value)
    return f"s3://models/{request.node.name}"


@pytest.fixture(scope="session")
def smollm(base_model_folder: Path) -> Any:
    """SmolLM2's tokenizer: a byte-level BPE."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(base_model_folder))
