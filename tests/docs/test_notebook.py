"""The executed notebook: run to its end, in step with its page, and without a path of the machine that ran it."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent.parent
NOTEBOOK = ROOT / "docs" / "five-lines.ipynb"


def code_cells() -> list[dict[str, Any]]:
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_every_cell_was_run_in_order_and_none_failed() -> None:
    cells = code_cells()
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    texts = json.dumps([output.get("text", "") for output in outputs])
    assert not re.search(r"/(tmp|root|home|work|Users)/", texts)


def test_the_page_is_that_of_the_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / ".ci")
    text, pictures = importlib.import_module("notebook").page()
    page = ROOT / "docs" / "five-lines.md"
    assert page.read_text(encoding="utf-8") == text, "run python .ci/notebook.py --page-only"
    for name, content in pictures.items():
        assert (ROOT / "docs" / "pictures" / name).read_bytes() == content
        assert f"pictures/{name}" in text


@pytest.mark.real
@pytest.mark.exhaustive
@pytest.mark.filterwarnings("default")  # peft and transformers warn whoever loads a model of each other's changes
def test_the_code_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a few rows, in this process."""
    monkeypatch.chdir(ROOT)
    plots = importlib.import_module("matplotlib")
    plots.use("agg")
    source = "\n".join("".join(cell["source"]) for cell in code_cells())
    fewer = source.replace("TRAIN, CALIBRATION, TEST = 120, 100, 200", "TRAIN, CALIBRATION, TEST = 24, 24, 16")
    assert fewer != source
    names: dict[str, Any] = {}
    threads = torch.get_num_threads()
    try:
        exec(compile(fewer.replace("plt.show()", "plt.close('all')"), str(NOTEBOOK), "exec"), names)
    finally:
        torch.set_num_threads(threads)
    assert names["answer"].decision in ("accept", "review")
    assert names["again"].probs == pytest.approx(names["answer"].probs, abs=1e-4)
