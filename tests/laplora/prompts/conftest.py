"""The default base model's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer


@pytest.fixture(scope="session")
def smollm(base_model_folder: Path) -> Any:
    """SmolLM2's tokenizer: a byte-level BPE."""
    return AutoTokenizer.from_pretrained(str(base_model_folder))
