"""What is measured of models: the cost of Jacobians for each family, as docs/models.md has it."""

from __future__ import annotations

import re

import pytest
from documents import ROOT

from benchmarks import reverse_pass
from laplora.jacobians.decoder_forms import _NORM_OFFSETS, decoder_form


@pytest.fixture(scope="module")
def layers_by_family() -> dict[str, str | None]:
    """By family the class of its layers; None where the pass is not written out."""
    classes: dict[str, str | None] = {}
    for family in reverse_pass.FAMILIES:
        form = decoder_form(reverse_pass.random_model(family, reverse_pass.QUICK).get_base_model())
        classes[family] = None if form is None else type(form.layers[0].module).__name__
    return classes


def test_every_covered_class_is_measured(layers_by_family: dict[str, str | None]) -> None:
    assert {name for name in layers_by_family.values() if name} == set(_NORM_OFFSETS)
    assert [family for family, name in layers_by_family.items() if name is None] == ["Phi-2", "GPT-2"]


def test_the_page_lists_every_covered_class_and_every_figure(layers_by_family: dict[str, str | None]) -> None:
    page = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(\w+DecoderLayer)`", page)) == set(_NORM_OFFSETS)
    (costs,) = re.findall(r"reverse_pass:begin costs -->(.*?)<!--", page, re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in costs.strip().splitlines()[2:]]
    assert [row[0] for row in rows] == list(reverse_pass.FAMILIES)
    for family, *values in rows:
        covered = layers_by_family[family] is not None
        assert [bool(value) for value in values] == [covered, True, covered, True], family
        assert all(float(value) >= 1 for value in values if value)  # a forward pass is among what it costs


def test_what_is_measured() -> None:
    qwen3, phi = (reverse_pass.cost(family, reverse_pass.QUICK, 1) for family in ("Qwen3", "Phi-2"))
    assert list(qwen3) == [(2, "written_out"), (2, "automatic"), (4, "written_out"), (4, "automatic")]
    assert all(value is not None and value > 0 for value in qwen3.values())
    assert [value is None for value in phi.values()] == [True, False, True, False]
