"""The pages' program that loads the default artifact, and README's figures beside what the artifact says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from documents import ROOT, blocks


@pytest.mark.usefixtures("base_model_folder")
def test_the_librarys_program_gives_the_readmes_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (
        block for block in blocks("python") if block.page == "docs/python.md" and "Predictor.load" in block.text
    )
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(compile(block.text, str(block), "exec"), names)
    prediction = names["prediction"]
    (shown,) = (json.loads(block.text) for block in blocks("json") if block.page == "README.md")
    assert prediction.labels[prediction.label_index] == shown["label"]
    assert prediction.decision == shown["decision"]
    # In bfloat16 a probability moves by up to 0.1 with the machine's instructions and the batch (docs/api.md).
    assert prediction.probs == pytest.approx(list(shown["probs"].values()), abs=0.1)
    assert prediction.probs_std == pytest.approx(list(shown["probs_std"].values()), abs=0.1)
    assert prediction.map_probs == pytest.approx(list(shown["map_probs"].values()), abs=0.01)
