"""The comparison of structures: measured on a small store, published, drawn, and asked for by command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from study_pages import cells, empty_docs, page_of, section
from synthetic_approximation import ADAPTER, comparison
from synthetic_study import TASKS, write_study

from benchmarks.study import approximate as approximate_module
from benchmarks.study.__main__ import main
from benchmarks.study.compute.approximation import compare, variants
from benchmarks.study.config import StudyConfig, load_study
from benchmarks.study.pages.approximation_plot import approximation_figure, write_approximation_plot
from benchmarks.study.pages.approximation_table import CORRELATION_BAND, RATIO_BAND, approximation_table, variants_of
from benchmarks.study.publish import publish, publish_variants
from benchmarks.study.results.records import read_records
from laplora.errors import DataError
from laplora.jacobians.blocks import Block
from training.workspace.files import write_json, write_tensors

CLASSES = 3
BLOCKS = tuple(
    Block(f"model.layers.{layer}.self_attn.v_proj.{group}", group, 40, 2)
    for layer in range(6)
    for group in ("lora_A", "lora_B")
)


def config_file(folder: Path) -> Path:
    """Write the configuration of a study with one task and two seeds, below the folder."""
    data = {"dataset": "file", "path": str(folder / "rows.jsonl"), "template": "sentiment", "labels": ["bad", "good"]}
    study = {
        "seeds": [0, 3],
        "tasks": {"reviews": {"data": data | {"train": 60, "calibration": 20, "test": 20, "split_seed": 0}}},
        "runs": str(folder / "runs"),
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


def write_store(folder: Path) -> None:
    """Write what gathering leaves, of random tokens: Jacobians and every Kronecker input from the same ones."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    for split, rows in (("train", 60), ("calibration", 20), ("test", 20)):
        logits = 2 * draw(rows, CLASSES)
        tensors = {
            "logits": logits,
            "class_mask": torch.ones(rows, CLASSES, dtype=torch.bool),
            # An overconfident model, so that its calibration rows ask for variance.
            "labels": torch.multinomial((logits / 4).softmax(1), 1, generator=generator)[:, 0],
            "label_mass": torch.ones(rows),
            "hidden": draw(rows, 4),
        }
        jacobians = []
        for i, block in enumerate(BLOCKS):
            sizes = (block.wide, block.narrow) if block.group == "lora_A" else (block.narrow, block.wide)
            tokens = 5
            # A few directions that all rows share, so that a low rank holds most of it.
            inputs = draw(rows, tokens, 3) @ draw(3, sizes[0]) + 0.2 * draw(rows, tokens, sizes[0])
            gradients = 0.2 * draw(rows, CLASSES - 1, tokens, 3) @ draw(3, sizes[1])
            gradients += 0.05 * draw(rows, CLASSES - 1, tokens, sizes[1])
            order = "nti,ncto->ncio" if block.group == "lora_A" else "nti,ncto->ncoi"
            jacobians.append(torch.einsum(order, inputs, gradients).flatten(2))
            if split == "train":
                flat, deltas = inputs.flatten(0, 1), gradients.flatten(0, 2)
                tensors |= {
                    f"mean_input.{i}": inputs.mean(1),
                    f"summed_gradient.{i}": gradients.sum(2),
                    f"last_input.{i}": inputs[:, -1],
                    f"last_gradient.{i}": gradients[:, :, -1],
                    f"expand_input.{i}": flat.T @ flat,
                    f"expand_gradient.{i}": deltas.T @ deltas / CLASSES,
                    "expand_tokens": torch.tensor([float(rows * tokens)]),
                }
        write_tensors(folder / f"{split}.safetensors", tensors)
        write_tensors(folder / f"{split}.jacobians.safetensors", {"jacobians": torch.cat(jacobians, 2).bfloat16()})
    write_json(
        folder / "gathered.json", {"blocks": [vars(b) for b in BLOCKS], "squared_distances": [1.0] * len(BLOCKS)}
    )


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyConfig:
    folder = tmp_path_factory.mktemp("approximation")
    config = load_study(config_file(folder))
    write_store(config.folder("reviews", 0))
    return config


@pytest.fixture(scope="module")
def measured(study: StudyConfig) -> list[dict[str, Any]]:
    return compare(study, "reviews", 0, rows=12)


def frame(*compared: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([record for one in compared for record in one])


def test_every_variant_is_measured_and_the_exact_one_agrees_with_itself(measured: list[dict[str, Any]]) -> None:
    assert len(measured) == len(list(variants()))
    assert {v["rows"] for v in measured} == {12}
    exact = measured[0]
    assert (exact["structure"], exact["subset"], exact["per_block"]) == ("exact", "all", False)
    # The same posterior fitted twice: equal but for the order of sums.
    assert exact["correlation"] == pytest.approx(1, abs=1e-9)
    assert exact["ratio"] == pytest.approx(1, abs=1e-9)
    assert {v["adapter_bytes"] for v in measured} == {2 * sum(b.wide * b.narrow for b in BLOCKS)}
    # A part of the parameters has a part of the variance.
    subsets = [v for v in measured if v["structure"] == "exact" and v["subset"] != "all"]
    assert all(0 < v["ratio"] < 1 for v in subsets)


def test_what_is_measured_can_be_published(measured: list[dict[str, Any]], tmp_path: Path) -> None:
    docs = empty_docs(tmp_path)
    files = publish_variants(measured, docs)
    assert [f.name for f in files] == ["study.json", "approximation.png", "results.md"]
    assert "| KFAC-reduce | full | - |" in page_of(docs)
    assert "| ⚠ exact GGN, last layer | - | - |" in page_of(docs)


def test_a_published_seed_is_replaced_and_others_stay(tmp_path: Path) -> None:
    docs = empty_docs(tmp_path)
    for one in (comparison("sst2", 1), comparison("boolq", 0), comparison("sst2", 1, shift=0.5), comparison("sst2", 0)):
        publish_variants(one, docs)
    found = read_records(docs / "results")["variants"]
    assert list(dict.fromkeys((r["task"], r["seed"]) for r in found)) == [("boolq", 0), ("sst2", 0), ("sst2", 1)]
    assert len(found) == 3 * len(comparison("sst2", 0))
    ratios = {r["seed"]: r["ratio"] for r in found if r["task"] == "sst2" and r["structure"] == "diagonal"}
    assert ratios == {0: 1.9, 1: 2.4}


def test_the_study_and_the_comparison_are_published_to_one_page(tmp_path: Path) -> None:
    """Whichever comes last leaves the other's tables in place."""
    docs = empty_docs(tmp_path)
    write_study(tmp_path / "runs", TASKS[:1], (0,))
    publish_variants(comparison("sst2", 0), docs)
    publish(tmp_path / "runs", docs)
    page = page_of(docs)
    assert "**sst2**: 200 test rows" in page
    assert "| alpha |" in page
    publish_variants(comparison("sst2", 0), docs)
    assert page_of(docs) == page


def test_what_could_not_be_computed_is_a_dash(tmp_path: Path) -> None:
    docs, result = empty_docs(tmp_path), comparison("sst2", 0)
    result[2]["correlation"] = float("nan")  # the first EKFAC
    publish_variants(result, docs)
    assert read_records(docs / "results")["variants"][2]["correlation"] is None
    assert "| EKFAC | 2 | - | - | 1.50 |" in page_of(docs)


def test_other_results_and_a_page_without_markers_are_refused(tmp_path: Path) -> None:
    docs, result = empty_docs(tmp_path), comparison("sst2", 0)
    del result[0]["ratio"]
    with pytest.raises(DataError, match="variants, record 0: missing or unknown: ratio"):
        publish_variants(result, docs)
    (docs / "results.md").write_text(page_of(docs).replace("approximation", "other"))
    with pytest.raises(DataError, match="one pair of markers"):
        publish_variants(comparison("sst2", 0), docs)
    assert not (docs / "results").exists()


def test_the_table_has_means_over_seeds_and_names_the_whole_width() -> None:
    table = approximation_table(frame(comparison("sst2", 0), comparison("sst2", 1, shift=0.1)))
    rows = {tuple(line[:3]): line[3:] for line in cells(table)[1:]}
    assert rows["EKFAC", "full", "-"][:2] == ["0.967", "1.54"]
    assert rows["EKFAC", "10", "-"] == ["0.965", "1.54", "0.320", "1.60", "12.3", "1.2"]
    assert rows["joint core", "10", "50"][:2] == ["0.991", "1.21"]
    assert rows["exact GGN", "-", "-"][:2] == ["1.000", "1.00"]
    assert rows["exact GGN, per block", "-", "-"][2] == "-"
    assert rows["⚠ exact GGN, last 4 layers", "-", "-"][:2] == ["0.530", "0.160"]
    assert len(rows) == len(comparison("sst2", 0))


def test_the_text_says_what_was_compared() -> None:
    records = frame(comparison("sst2", 0), comparison("sst2", 1), comparison("boolq", 0, shift=1))
    text = approximation_table(records)
    assert f"at least {CORRELATION_BAND[0]:g}, a ratio from {RATIO_BAND[0]:g} to {RATIO_BAND[1]:g}" in text
    seeds = "31.6 (seed 0), 32.6 (seed 1)"
    assert f"**sst2**: 200 test rows, prior precision {seeds}, adapter {ADAPTER / 1e6:.2f} MB" in text
    # joint core at rank 10 is the smallest within both bands; a shift of 1 leaves none.
    assert "joint core, rank 10, joint rank 50, 3.50 × the adapter" in text
    assert "none but the exact posterior itself" in text
    warning = text[text.index("⚠ marks") : text.index("variances.\n\n!")]
    assert "correlations of -0.08 to 0.53" in warning
    assert "ratios of 0.00400 to 1.11" in warning
    assert "⚠" not in approximation_table(records[records.subset == "all"])


def test_nothing_published_is_one_sentence_and_no_picture(tmp_path: Path) -> None:
    nothing = frame()
    assert approximation_table(nothing).count("\n") == 1
    assert write_approximation_plot(nothing, tmp_path) == []


def test_the_plot_is_a_small_picture(tmp_path: Path) -> None:
    records = frame(*(comparison(f"task_{i}", 0, shift=0.1 * i) for i in range(9)))
    (path,) = write_approximation_plot(records, tmp_path)
    with Image.open(path) as picture:
        picture.load()
        assert len(picture.getcolors(256) or ()) > 3  # an empty canvas has one
    assert path.stat().st_size < 150_000


def test_the_plot_has_every_variant_its_rank_and_the_bands() -> None:
    records = frame(comparison("sst2", 0))
    figure, points = approximation_figure(records), variants_of(records, "sst2")
    for axes in figure.axes:
        drawn = [x for line in axes.lines if line.get_marker() not in ("", "None") for x in line.get_xdata()]
        assert sorted(drawn) == pytest.approx(sorted(points["size"]))
        assert axes.get_xscale() == "log"
        labels = [t.get_text() for t in axes.texts]
        assert sorted(labels) == sorted("/".join(rank for rank in ranks if rank != "-") for ranks in points.ranks)
        assert labels.count("full") == 1
        low, high = axes.get_ylim()
        assert all(low <= y <= high for line in axes.lines for y in line.get_ydata())
    band = figure.axes[1].patches[0].get_extents().transformed(figure.axes[1].transData.inverted())
    assert (band.y0, band.y1) == pytest.approx(RATIO_BAND)
    names = {text.get_text().removeprefix("⚠ ") for text in figure.legends[0].get_texts()}
    assert names == {*points.series, "target band"}


def test_the_command_compares_and_publishes(
    study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = empty_docs(tmp_path)
    monkeypatch.chdir(tmp_path)
    compared: list[tuple[str, int, int]] = []

    def recorded(config: StudyConfig, task: str, seed: int, rows: int) -> list[dict[str, Any]]:
        compared.append((task, seed, rows))
        return comparison(task, seed)

    monkeypatch.setattr(approximate_module, "compare", recorded)
    file = str(study.runs.parent / "study.yaml")
    assert main(["--config", file, "--approximation", "reviews", "0", "--rows", "7"]) == 0
    assert compared == [("reviews", 0, 7)]
    assert json.loads((docs / "results" / "study.json").read_text())["variants"]
    assert "**reviews**" in section(page_of(docs), "approximation")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reviews", "3"], "train.jacobians.safetensors, calibration.jacobians.safetensors"),
        (["reviews", "3"], "python -m benchmarks.study --keep-jacobians"),
        (["reviews", "1"], "its seeds 0, 3"),
        (["reviews", "first"], "its seeds 0, 3"),
        (["other", "0"], "its tasks are reviews"),
        (["reviews", "0", "--rows", "1"], "at least two rows"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    study: StudyConfig, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(study.runs.parent / "study.yaml"), "--approximation", *arguments]) == 1
    assert message in capsys.readouterr().err
