"""The site builds strictly, needs no network and has the code's reference; the notebook was run, as its page shows."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import ROOT

import laplora
from laplora import client
from laplora.artifact.manifest import Manifest
from service.errors import ERROR_KINDS
from service.settings import Settings
from service.telemetry.logs import EVENTS


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as ``make docs`` does."""
    folder = tmp_path_factory.mktemp("site")
    (command,) = re.findall(r"mkdocs (build .*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    arguments = [sys.executable, "-m", "mkdocs", *command.split(), "--site-dir", str(folder)]
    built = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return folder


class Loaded(HTMLParser):
    """Collects what a browser fetches by itself for a page."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(given.get("src") or "")
        elif tag == "link" and given.get("rel") not in ("canonical", "prev", "next"):
            self.addresses.append(given.get("href") or "")


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert loaded.addresses
        assert [address for address in loaded.addresses if re.match(r"(https?:)?//", address)] == [], page.name
        for address in filter(None, loaded.addresses):
            assert page.name == "404.html" or (page.parent / address.partition("?")[0]).is_file(), (page.name, address)


def test_every_table_is_a_table(site: Path) -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in site.rglob("*.html")}
    assert sum(text.count("<table>") for text in pages.values()) > 100
    for name, text in pages.items():
        # A row that no table took in stands in a paragraph, with its bars.
        assert [found[:80] for found in re.findall(r"<p>[^<]*\|[^|]*\|[^<]*", text)] == [], name
        # So does an item of a list, or the mark of an emphasis, that a comment at the start of a line ended.
        assert re.findall(r"\n?- <strong>|<p>\*\w", text) == [], name
        # A screen reader says the head of every column, and what the search is.
        assert re.findall(r"<th[^>]*></th>|role=\"dialog\">", text) == [], name


def test_the_reference_tables_are_those_of_the_code(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / ".ci")
    text = (site / "configuration.html").read_text(encoding="utf-8")
    flags = [f"--{name.replace('_', '-')}" for name in Settings.model_fields]
    for name in (*flags, *EVENTS, "laplora_queue_tokens", "laplora_answers_total"):
        assert text.count(f"<td><code>{name}</code></td>") == 1, name
    names = [name for name, *_ in importlib.import_module("training_fields").fields()]
    assert len(names) > 80
    for name in names:
        assert f"<td><code>{name.strip('`')}</code></td>" in text, name
    text = (site / "api.html").read_text(encoding="utf-8")
    for name in (
        *(kind.code for kind in ERROR_KINDS),
        "POST /evaluate/jobs",
        "target_risk",
        "decision_reason",
        "uncertainty.epistemic",
    ):
        assert f"<td><code>{name}</code></td>" in text, name
    text = (site / "artifacts" / "FORMAT.html").read_text(encoding="utf-8")
    for name in (*Manifest.model_fields, "readout.token_ids", "predictives.thresholds.review.target_risk"):
        assert f"<td><code>{name}</code></td>" in text, name


def test_the_python_reference_has_every_public_name(site: Path) -> None:
    text = (site / "python-reference.html").read_text(encoding="utf-8")
    for package in (laplora, client):
        for name in package.__all__:
            found = getattr(package, name)
            if inspect.isclass(found) and issubclass(found, Exception):
                assert f'id="{found.__module__}.{name}"' in text, name
            elif callable(found) and found is not client.Client:
                assert f'id="{package.__name__}.{name}"' in text, name


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
    fewer = source.replace("TRAIN, CALIBRATION, TEST = 200, 400, 200", "TRAIN, CALIBRATION, TEST = 24, 24, 16")
    assert fewer != source
    names: dict[str, Any] = {}
    threads = torch.get_num_threads()
    try:
        exec(compile(fewer.replace("plt.show()", "plt.close('all')"), str(NOTEBOOK), "exec"), names)
    finally:
        torch.set_num_threads(threads)
    assert names["answer"].decision in ("accept", "review")
    assert names["again"].probs == pytest.approx(names["answer"].probs, abs=1e-4)
