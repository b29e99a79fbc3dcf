"""Executes the notebook of the documentation and writes its page: python .ci/notebook.py [--page-only].

``docs/five-lines.ipynb`` is the source. Executing it writes its outputs into it; the page is
``docs/five-lines.md`` with its pictures in ``docs/pictures/``.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor

DOCS = Path(__file__).parent.parent / "docs"
NOTEBOOK = DOCS / "five-lines.ipynb"
PAGE = DOCS / "five-lines.md"


def execute() -> None:
    """Run every cell in the repository's folder and keep what it gave."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    run = ExecutePreprocessor(timeout=3600, kernel_name="python3")  # type: ignore[no-untyped-call]
    run.preprocess(notebook, {"metadata": {"path": str(DOCS.parent)}})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of this run
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]  # bars of progress
    notebook.metadata.pop("language_info", None)
    nbformat.write(notebook, NOTEBOOK)  # type: ignore[no-untyped-call]


def page() -> tuple[str, dict[str, bytes]]:
    """Return the page's text, and its pictures by file name."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    notebook.metadata["language_info"] = {"name": "python"}  # names the language of the page's blocks
    body, resources = MarkdownExporter().from_notebook_node(notebook)  # type: ignore[no-untyped-call]
    order = sorted(resources["outputs"], key=body.index)
    names = {name: f"five-lines-{number}.png" for number, name in enumerate(order, 1)}
    for name, picture in names.items():
        body = re.sub(rf"!\[[^\]]*\]\({re.escape(name)}\)", f"![]({'pictures/' + picture})", body)
    return body.strip() + "\n", {picture: resources["outputs"][name] for name, picture in names.items()}


def main() -> None:
    """Execute, unless only the page is wanted, and write the page."""
    if "--page-only" not in sys.argv[1:]:
        execute()
    text, pictures = page()
    PAGE.write_text(text, encoding="utf-8")
    for name, content in pictures.items():
        (DOCS / "pictures" / name).write_bytes(content)


if __name__ == "__main__":
    main()
