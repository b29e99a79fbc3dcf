"""The page on training says of every offline model what the code does."""

from __future__ import annotations

from documents import read

from laplora.models.offline import OFFLINE_MODELS


def test_the_table_of_offline_models_is_that_of_the_code() -> None:
    page = read("docs/training.md")
    table = page.partition("## Base models without a hub")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| `")]
    expected = []
    for name, model in OFFLINE_MODELS.items():
        fetched = sum(wheel.size_mb for wheel in model.wheels)
        sizes = (fetched, fetched + model.gguf_mb + model.folder_mb, model.folder_mb, model.memory_mb)
        wheels = str(len(model.wheels))
        row = [f"`{name}`", model.licence, wheels, *(f"{size:,} MB" for size in sizes), f"{model.seconds} s"]
        expected.append(row)
        assert f"({model.source})" in table
    assert rows == expected
