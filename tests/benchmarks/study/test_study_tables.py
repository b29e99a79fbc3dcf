"""The study's tables, targets and plots, from records of known distributions."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from study_pages import cells, page_of, section
from synthetic_study import METHODS, TASKS, Task, write_seed, write_study

from benchmarks.study.pages.plots import grid_shape, nll_figure, pooled_bins, reliability_figure, write_plots
from benchmarks.study.pages.side_tables import over_seeds
from benchmarks.study.pages.tables import page_tables, study_tables
from benchmarks.study.publish import score_study
from benchmarks.study.results.records import Tables, read_tables, tables_of
from benchmarks.study.results.scores import outcome
from benchmarks.study.results.targets import PLANNED_TASKS, TaskFigures, coverage_error, judge, task_figures
from laplora.metrics.ranking import error_auroc
from training.report.markdown import fill


@pytest.fixture(scope="module")
def published(docs: Path) -> Tables:
    return read_tables(docs / "results")


def scored(folder: Path) -> Tables:
    return tables_of(score_study(folder / "study"))


def by_title(table: str) -> dict[str, list[str]]:
    """Return a table's lines by their first cell."""
    return {line[0]: line[1:] for line in cells(table)}


def test_the_page_holds_the_tables_and_keeps_its_other_text(docs: Path, published: Tables) -> None:
    page = page_of(docs)
    assert page.startswith("# Results\n\nbefore\n")
    assert page.endswith("\nafter\n")
    for name, text in study_tables(published).items():
        assert text.strip()
        assert section(page, name) == text.strip()
    assert fill(page, "study", page_tables(docs / "results")) == page


def test_a_title_cannot_break_the_table(tmp_path: Path) -> None:
    write_study(tmp_path, TASKS[:1], (0,), methods={m: {"title": f"{m} | x\ny", "family": "f"} for m in METHODS})
    for text in study_tables(scored(tmp_path)).values():
        for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
            assert len({re.sub(r"\\\|", "", line).count("|") for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    ("values", "seeds", "text"),
    [([], 3, "-"), ([0.5], 1, "0.500"), ([0.49, 0.51], 3, "0.500 ± 0.014 (2)"), ([0.5, None, 0.5], 2, "0.500 ± 0.000")],
)
def test_a_cell_is_mean_and_spread_over_the_seeds_that_have_it(
    values: list[float | None], seeds: int, text: str
) -> None:
    assert over_seeds(pd.Series(values, dtype=float), seeds) == text


def test_missing_methods_are_dashes_and_the_best_mean_of_all_seeds_is_bold(published: Tables) -> None:
    rows = by_title(study_tables(published)["nll"])
    assert rows["method"] == [task.name for task in TASKS]
    assert rows["EKFAC, evidence, scalar"][1] == "-"
    assert re.fullmatch(r"\d\.\d{3} \(1\)", rows["checkpoint ensemble"][1])
    own = published["scores"][(published["scores"].task == "beta") & (published["scores"].method == "map")].nll
    assert rows["MAP"][1] == f"{own.mean():.3f} ± {own.std():.3f}"
    assert rows["*recommended*"][2] == rows["MAP"][2].replace("*", "")
    for column in range(len(TASKS)):
        values = {title: row[column] for title, row in rows.items() if title not in ("method", "*recommended*")}
        whole = {t: float(c.replace("*", "").split()[0]) for t, c in values.items() if c != "-" and "(" not in c}
        assert {t for t, c in values.items() if c.startswith("**")} == {
            t for t, v in whole.items() if v == min(whole.values())
        }
    # Every synthetic method multiplies the same logits: the answers are the same.
    assert "**" not in study_tables(published)["accuracy"]


def test_the_matrix_counts_wins_ties_and_losses(published: Tables) -> None:
    rows, pairs = by_title(study_tables(published)["matrix"]), published["comparisons"]
    for method, (title, _, _) in METHODS.items():
        for i, against in enumerate(("map", "temperature")):
            own = pairs[(pairs.method == method) & (pairs.against == against)]
            ends = [outcome(c.low, c.high) for c in own.itertuples()]
            shown = " / ".join(str(ends.count(e)) for e in ("win", "tie", "loss")) if ends else "·"
            assert rows[title][-2 + i] == shown
    # MAP is far overconfident on alpha, so temperature scaling wins there; gamma's MAP is calibrated, so it does not.
    assert rows["temperature scaling"][0] == "+ ·"
    assert rows["temperature scaling"][2] != "+ ·"


def figures(name: str = "t", **changes: Any) -> TaskFigures:
    """Return a task on which every target is met."""
    values: dict[str, Any] = {
        "task": name,
        "rows": 500,
        "calibration_rows": 150,
        "seeds": 3,
        "recommended": ("laplace",) * 3,
        "map_nll": 0.8,
        "recommended_nll": 0.4,
        "map_ece": 0.14,
        "recommended_ece": 0.03,
        "gap": (0.1, 0.08, 0.12),
        "against_map": (-0.4, -0.5, -0.3),
        "against_temperature": (-0.01, -0.02, 0.01),
        "accuracy_change": 0.0,
        "auroc_lead": 0.04,
        "coverage": (0.91, 0.9),
    }
    return TaskFigures(**(values | changes))


def verdicts(tasks: list[TaskFigures]) -> list[str]:
    return [target.verdict for target in judge([replace(t, task=f"t{i}") for i, t in enumerate(tasks)])]


def test_all_targets_can_be_met() -> None:
    assert verdicts([figures()] * PLANNED_TASKS) == ["met"] * 8


@pytest.mark.parametrize(
    ("change", "missed"),
    [
        ({"against_map": (-0.1, -0.3, 0.1)}, {0}),
        ({"against_map": (0.1, 0.05, 0.2)}, {0, 1}),
        ({"recommended_ece": 0.051}, {3}),
        ({"accuracy_change": -0.006}, {4}),
        ({"auroc_lead": -0.011}, {5}),
        ({"coverage": (0.879, 0.9)}, {7}),
        ({"coverage": (0.921, 0.9)}, {7}),
    ],
)
def test_one_bad_task_misses_a_target_and_is_named(change: dict[str, Any], missed: set[int]) -> None:
    tasks = [figures(f"t{i}") for i in range(PLANNED_TASKS - 1)] + [figures("bad", **change)]
    targets = judge(tasks)
    assert {i for i, t in enumerate(targets) if t.verdict == "missed"} == missed
    assert {i for i, t in enumerate(targets) if "bad" in t.figures} >= missed


def test_the_boundaries_of_the_targets() -> None:
    kind = figures(accuracy_change=-0.005, recommended_ece=0.05, auroc_lead=0.03, coverage=(0.88, 0.9))
    assert verdicts([kind] * PLANNED_TASKS) == ["met"] * 8
    # A small test split is excused from the ECE target, a calibrated MAP from having to be beaten.
    assert "missed" not in verdicts([figures(rows=499, recommended_ece=0.2)] * PLANNED_TASKS)
    calm = figures(map_ece=0.05, gap=(0.01, -0.01, 0.03), against_map=(-0.01, -0.05, 0.02))
    assert not calm.overconfident
    assert verdicts([calm] * PLANNED_TASKS)[0] == "met"
    assert figures(map_ece=0.02, gap=(0.01, 0.001, 0.02)).overconfident


@pytest.mark.parametrize(("losses", "leads", "expected"), [(2, 3, ["met", "met"]), (3, 2, ["missed", "missed"])])
def test_targets_about_some_of_the_tasks(losses: int, leads: int, expected: list[str]) -> None:
    lost = {"against_temperature": (0.1, 0.05, 0.15)}
    tasks = [
        figures(f"t{i}", **(lost if i < losses else {}), auroc_lead=0.03 if i < leads else 0.0)
        for i in range(PLANNED_TASKS)
    ]
    got = judge(tasks)
    assert [got[2].verdict, got[6].verdict] == expected
    assert f"{8 - losses} tied, {losses} lost" in got[2].figures


def test_on_fewer_tasks_a_target_is_open_unless_already_decided() -> None:
    assert verdicts([figures()] * 3) == ["open", "open", "open", "open", "open", "open", "met", "open"]
    lost = figures(against_temperature=(0.1, 0.05, 0.15))
    assert verdicts([lost] * 3)[2] == "missed"
    # On more tasks than planned the share counts: 6 of 8 is 7 of 9.
    assert verdicts([figures()] * 6 + [lost] * 3)[2] == "missed"
    assert verdicts([figures()] * 7 + [lost] * 2)[2] == "met"


def test_the_coverage_target_shows_what_the_calibration_rows_allow() -> None:
    target = judge([figures(), figures("few", calibration_rows=67), figures("far", coverage=(0.85, 0.9))])[7]
    assert "the nominal 90 %" in target.text
    # sqrt(0.9 * 0.1 / 152) and sqrt(0.9 * 0.1 / 69)
    assert target.figures == (
        "2 of 3; off: far 0.850 ± 0.024; standard deviation that the calibration rows allow: "
        "2.4 points (150 rows) to 3.6 points (67 rows)"
    )
    assert judge([figures(coverage=None)] * PLANNED_TASKS)[7].verdict == "open"
    assert judge([figures(coverage=(0.9, 0.9))] * 7 + [figures(coverage=None)])[7].verdict == "open"


def test_the_deviation_of_coverage_is_that_of_split_conformal_sets() -> None:
    """Uniform scores: the coverage of the threshold at rank k of n is that score itself."""
    n = 67
    rank = math.ceil((n + 1) * 0.9)
    draws = torch.rand(20_000, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    coverage = draws.sort(1).values[:, rank - 1]
    # Mean rank / (n + 1) = 0.912 in place of 0.9, hence 3 %; the deviation's own error at 20,000 draws is 0.5 %.
    assert float(coverage.std()) == pytest.approx(coverage_error(0.9, n), rel=0.08)


def test_the_conformal_table_has_the_means_over_seeds(published: Tables) -> None:
    found = {(r[0], r[1]): r[2:] for r in cells(study_tables(published)["conformal"])[1:]}
    assert set(found) == {(t.name, m) for t in TASKS for m in ("MAP", "temperature scaling", "*recommended*")}
    seeds = published["seeds"]
    for task in TASKS:
        for method, title in (("map", "MAP"), (task.recommended, "*recommended*")):
            one, other = (c[method] for c in seeds[seeds.task == task.name].conformal)
            expected = ["0.9"]
            for kind in ("lac", "aps"):
                expected.append(f"{(one[kind]['coverage'] + other[kind]['coverage']) / 2:.3f}")
                expected.append(f"{(one[kind]['size'] + other[kind]['size']) / 2:.2f}")
            assert found[task.name, title] == [*expected, f"± {(0.9 * 0.1 / 152) ** 0.5:.3f}"]
    (alpha, *_) = task_figures(published)
    assert alpha.coverage == (pytest.approx(float(found["alpha", "*recommended*"][1]), abs=5e-4), 0.9)


def test_prediction_sets_that_a_seed_lacks_are_counted(tmp_path: Path) -> None:
    write_study(tmp_path, TASKS[:1], (0,))
    write_study(tmp_path, TASKS[:1], (1,), conformal={})
    assert "| *recommended* (1) |" in study_tables(scored(tmp_path))["conformal"]
    write_study(tmp_path, TASKS[:1], conformal={})
    found = scored(tmp_path)
    assert study_tables(found)["conformal"] == "No published task has prediction sets.\n"
    assert task_figures(found)[0].coverage is None


def test_averages_over_option_orders_stand_beside_their_reference(tmp_path: Path, published: Tables) -> None:
    """Two tasks of which each has another number of orders; the second lacks one average under one seed."""
    missing = (("order_average_temperature", 1),)
    write_study(tmp_path, (Task("four", classes=4, orders=4), Task("two", orders=2, missing=missing), TASKS[0]))
    found = scored(tmp_path)
    rows = cells(study_tables(found)["orders"])[1:]
    assert [r[:3] for r in rows] == [
        ["four", "MAP", "4"],
        ["four", "temperature scaling", "4"],
        ["two", "MAP", "2"],
        ["two", "temperature scaling (1)", "2"],
    ]
    scores, pairs = found["scores"], found["comparisons"]
    for row in rows:
        method, reference = "order_average", "map"
        if row[1].startswith("temperature"):
            method, reference = "order_average_temperature", "temperature"
        seeds = (0,) if row[1].endswith("(1)") else (0, 1)
        own = scores[(scores.task == row[0]) & scores.seed.isin(seeds)]
        means = [own[own.method == m][["nll", "accuracy"]].mean() for m in (method, reference)]
        (pair,) = pairs[(pairs.task == row[0]) & (pairs.method == method) & (pairs.against == reference)].itertuples()
        assert row[3:5] == [f"{m.nll:.3f}" for m in means]
        assert row[5].startswith(f"{pair.difference:+.3f} [")
        assert row[6:] == [outcome(pair.low, pair.high), *(f"{m.accuracy:.3f}" for m in means)]
    # One row stands for both tasks elsewhere, so its title names no number.
    assert "MAP averaged over option orders, temperature" in set(found["methods"].title)
    assert study_tables(published)["orders"] == "No published task was asked in other orders of its options.\n"


def test_the_rankings_table_has_every_score_and_what_each_seed_chose(published: Tables) -> None:
    heading, *rows = cells(study_tables(published)["rankings"])
    assert heading == ["task", "`map_entropy`", "`total_entropy`", "`epistemic`", "chosen", "chosen by seed"]
    for row, task in zip(rows, TASKS, strict=True):
        own = pd.DataFrame([*published["seeds"][published["seeds"].task == task.name].rankings])
        assert row[0] == task.name
        assert [cell.replace("*", "").split()[0] for cell in row[1:4]] == [f"{mean:.3f}" for mean in own.mean()]
        assert not row[3].startswith("**")  # a constant score: 0.5
        assert any(cell.startswith("**") for cell in row[1:3])
        assert row[4].startswith(f"{(own.map_entropy[0] + own.total_entropy[1]) / 2:.3f}")
        assert row[5] == "0: `map_entropy`, 1: `total_entropy`"


def test_rankings_that_a_seed_lacks_are_left_out(tmp_path: Path) -> None:
    write_study(tmp_path, TASKS[:1], (0,), rankings={"map_entropy": 0.7, "epistemic": 0.6})
    write_study(tmp_path, TASKS[:1], (1,), rankings={"map_entropy": None, "epistemic": 0.8}, review_score="epistemic")
    row = study_tables(scored(tmp_path))["rankings"].splitlines()[2]
    assert row == "| alpha | 0.700 (1) | 0.700 ± 0.141 | 0.750 ± 0.071 | 0: `map_entropy`, 1: `epistemic` |"
    write_study(tmp_path, TASKS[:1], rankings={})
    assert "No published seed" in study_tables(scored(tmp_path))["rankings"]


def test_task_figures_are_means_over_seeds(published: Tables) -> None:
    alpha, _, gamma = task_figures(published)
    own = published["scores"][published["scores"].task == "alpha"].set_index("method")
    assert alpha.recommended == ("ekfac_validation_scalar",) * 2
    assert alpha.map_ece == pytest.approx(own.loc["map"].ece.mean())
    assert alpha.overconfident
    # All synthetic methods answer alike, so MAP's row of scores is also its entropy on the recommended one's mistakes.
    lead = own.loc["ekfac_validation_scalar"].auroc_error.mean() - own.loc["map"].auroc_error.mean()
    assert alpha.auroc_lead == pytest.approx(lead)
    # Where MAP is what is recommended, nothing is won or lost.
    assert list(gamma.against_map or ()) == [0, 0, 0]
    assert gamma.accuracy_change == 0


def test_the_review_score_is_held_against_maps_entropy_even_where_map_is_recommended(tmp_path: Path) -> None:
    folder = tmp_path / "study" / "alpha" / "0"
    write_seed(folder, TASKS[0], 0, recommended="map")
    tensors = load_file(folder / "predictions.safetensors")
    wrong = tensors["probs.map"].argmax(1) != tensors["labels"]
    save_file(tensors | {"score.map": wrong.double()}, folder / "predictions.safetensors")
    (task,) = task_figures(scored(tmp_path))
    entropy_auroc = error_auroc(torch.special.entr(tensors["probs.map"]).sum(1), wrong)
    assert entropy_auroc is not None
    assert task.auroc_lead == pytest.approx(1 - entropy_auroc)


def test_the_recommended_is_pooled_over_whatever_each_seed_recommends(tmp_path: Path) -> None:
    write_seed(tmp_path / "study" / "alpha" / "0", TASKS[0], 0, recommended="map")
    write_seed(tmp_path / "study" / "alpha" / "1", TASKS[0], 1, recommended="temperature")
    found = scored(tmp_path)
    own = found["scores"][found["scores"].seed == 1].set_index("method").nll
    (task,) = task_figures(found)
    assert task.recommended == ("map", "temperature")
    assert task.against_map is not None
    assert task.against_map[0] == pytest.approx((own["temperature"] - own["map"]) / 2)
    assert "MAP (1 of 2), temperature scaling (1 of 2)" in study_tables(found)["recommended"]


def test_plots_are_small_pictures(published: Tables, tmp_path: Path) -> None:
    """Also of a whole study: nine tasks and twenty methods, by renaming what one task gave."""
    tables = dict(published)
    for name in ("tasks", "scores", "comparisons", "seeds"):
        own = tables[name][tables[name].task == "alpha"]
        tables[name] = pd.concat([own.assign(task=f"task_{i}") for i in range(9)])
    extra = [f"method_{i}" for i in range(15)]
    for name in ("methods", "comparisons"):
        own = tables[name][tables[name].method == "ensemble"]
        tables[name] = pd.concat([tables[name], *(own.assign(method=m) for m in extra)], ignore_index=True)
    for path in write_plots(tables, tmp_path):
        with Image.open(path) as picture:
            picture.load()
            assert len(picture.getcolors(256) or ()) > 3  # an empty canvas has one
        assert path.stat().st_size < 150_000, path.name


def test_the_nll_plot_shows_every_comparison_with_map(published: Tables) -> None:
    shown = [axes for axes in nll_figure(published).axes if axes.get_title()]
    assert [axes.get_title() for axes in shown] == [f"{task.name}, 2 seeds" for task in TASKS]
    pairs = published["comparisons"][published["comparisons"].against == "map"]
    for axes, task in zip(shown, TASKS, strict=True):
        own = pairs[pairs.task == task.name]
        dots = [line for line in axes.lines if line.get_marker() in ("o", ">") and line.get_fillstyle() == "full"]
        assert len(dots) == len(own)
        left, right = axes.get_xlim()
        assert left < min(own.low.min(), 0)
        assert right > 0
        rings = [line for line in axes.lines if line.get_fillstyle() == "none"]
        assert len(rings) == (0 if task.recommended == "map" else 1)
        # A method far worse than MAP is written at the edge.
        beyond = own[own.difference > right].difference
        assert {t.get_text() for t in axes.texts} >= {f"{difference:+.2f}" for difference in beyond}
        assert len(beyond) or task.name != "gamma"


def test_the_reliability_plot_shows_both_eces(published: Tables) -> None:
    titles = [axes.get_title() for axes in reliability_figure(published).axes if axes.get_title()]
    for title, task in zip(titles, task_figures(published), strict=True):
        assert title == f"{task.task}\nECE {task.map_ece:.3f} → {task.recommended_ece:.3f}"


def test_pooled_bins_are_those_of_the_rows_together() -> None:
    found = pooled_bins([((7, 10, 0.5, 0.4), (14, 5, 0.95, 1.0)), ((7, 30, 0.52, 0.6),)])
    assert list(found.index) == [7, 14]
    assert list(found.loc[7]) == pytest.approx([40, 0.515, 0.55])
    assert list(found.loc[14]) == [5, 0.95, 1.0]


@pytest.mark.parametrize(("panels", "shape"), [(1, (1, 1)), (4, (1, 4)), (5, (2, 3)), (8, (2, 4)), (9, (3, 3))])
def test_grid_shape(panels: int, shape: tuple[int, int]) -> None:
    assert grid_shape(panels) == shape
