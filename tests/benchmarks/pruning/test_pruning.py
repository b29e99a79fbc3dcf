"""Layers removed and measured, on a tiny base; and the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.pruning import measure as measuring
from benchmarks.pruning import page
from benchmarks.pruning.measure import METHODS, OVERRIDES, answer_times, configuration, measure


@pytest.fixture
def overrides(tiny_base_folder: Path, data_wheel: Path) -> list[str]:
    """A run of two steps on the base of two layers."""
    small = ["data.train=20", "data.calibration=20", "data.test=12", "optimizer.steps=2", "adapter.rank=2"]
    return [*OVERRIDES, *small, f"base.model={tiny_base_folder}", "base.dtype=float32", "laplace.structure=ekfac"]


def test_runs_are_measured_once_and_published(
    overrides: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, without = (measure(count, tmp_path, overrides) for count in (0, 1))
    assert (whole["removed"], whole["distance"]) == ([], None)
    assert without["removed"] in ([0], [1])
    assert 0 < without["distance"] < 1
    for record in (whole, without):
        run = tmp_path / "runs" / f"pruned-{record['count']}"
        evaluation = json.loads((run / "report" / "evaluation.json").read_text())
        assert record["rows"] == 12
        for method in METHODS:
            for score, found in record["methods"][method].items():
                assert found["value"] == evaluation[method][score]
                assert [found["low"], found["high"]] == evaluation[method]["intervals"][score]
                assert found["low"] <= found["high"]
    for name in ("packed", "expanded"):
        assert 0 < without["bytes"][name] < whole["bytes"][name]
    layer = 4 * (4 * 64 * 64 + 3 * 64 * 128 + 2 * 64)  # float32: attention, MLP, norms
    assert whole["bytes"]["expanded"] - without["bytes"]["expanded"] == layer
    monkeypatch.setattr(measuring, "run", lambda _config: pytest.fail("it was trained again"))
    assert measure(1, tmp_path, overrides) == without
    times = answer_times(tmp_path, turns=3)
    assert times["relative"]["0"] == {"median": 1, "low": 1, "high": 1}
    assert set(times["times"]) == {"0", "1"}
    assert all(0 < one["low"] <= one["median"] <= one["high"] for one in times["times"].values())
    for name, file in (("PAGE", "page.md"), ("RESULTS", "results.json"), ("PLOT", "pruning.png")):
        monkeypatch.setattr(page, name, tmp_path / file)
    page.publish(tmp_path)
    text = (tmp_path / "page.md").read_text()
    nll = without["methods"]["laplace"]["nll"]
    assert f"{nll['value']:.3f} [{nll['low']:.3f}, {nll['high']:.3f}] |\n" in text
    assert "| 0 | none | - |" in text
    assert "**Not run yet**, and planned: without 3, 6, 10, 15 layers." in text
    assert (tmp_path / "pruning.png").stat().st_size > 10_000
    (tmp_path / "1.json").unlink()
    page.publish(tmp_path)  # what was published stays
    assert (tmp_path / "page.md").read_text() == text


def test_the_configuration_is_the_ready_one_without_layers(tmp_path: Path) -> None:
    config, plain = (configuration(count, tmp_path) for count in (6, 0))
    assert (config.base.prune_layers, plain.base.prune_layers) == (6, 0)
    assert (config.data.train, config.data.calibration, config.data.test) == (300, 150, 372)
    assert config.adapter.targets == ("q_proj", "v_proj", "lm_head")
    assert config.base.model_copy(update={"prune_layers": 0}) == plain.base
    assert config.run_dir == tmp_path / "runs" / "pruned-6"


def test_the_committed_page_is_made_of_the_committed_figures() -> None:
    content = page.committed()
    assert page.PAGE.read_text(encoding="utf-8") == page.render(content)
    counts = [record["count"] for record in content["records"]]
    assert counts == sorted(counts)
    assert counts[0] == 0
    sizes = [record["bytes"]["packed"] for record in content["records"]]
    assert sizes == sorted(sizes, reverse=True)
