"""An adapter that lies elsewhere is that of a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from remote_servers import hub_server

from laplora.errors import ConfigError, ModelError
from training.workspace.given_adapter import given_adapter


def test_an_adapter_at_an_address_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("LAPLORA_CACHE", str(tmp_path / "cache"))
    settings = {"base_model_name_or_path": "s3://models/base", "task_type": "SEQ_CLS"}
    with hub_server("owner/name", monkeypatch) as hub:
        hub.commit({"adapter_config.json": json.dumps(settings).encode()})
        with pytest.raises(ModelError, match="adapter_model"):
            given_adapter("hf://owner/name", None, None)
        hub.commit({"adapter_model.safetensors": b"weights"})
        adapter = given_adapter("hf://owner/name", None, None)
    assert (adapter.base, adapter.has_head) == ("s3://models/base", True)
    assert (adapter.folder / "adapter_model.safetensors").read_bytes() == b"weights"


def test_an_address_that_would_be_recorded_has_no_secret() -> None:
    with pytest.raises(ConfigError) as refused:
        given_adapter("https://host/adapter?key=hidden", None, None)
    assert "hidden" not in str(refused.value)
