"""The page and the picture, of made-up records."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from benchmarks.evidence import page
from benchmarks.evidence.frontier import picture
from benchmarks.evidence.page import render
from benchmarks.evidence.plan import SMALL
from benchmarks.evidence.scores import Answers, Unit, scored

TASKS = ("snips", "ag_news", "hate")
NLL = {"temperature": 0.5, "served": 0.4, "pool": 0.42, "words": 0.6, "all_labels": 0.45}


@pytest.fixture(autouse=True)
def few_rivals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "RIVALS", ["temperature", "words", "all_labels"])


def made_up(**changed: dict[str, Any]) -> list[dict[str, Any]]:
    """Return 3 seeds of 5 draws of each method on each task; ``changed``: by method, or task and method."""
    records = []
    for task in TASKS:
        for budget in (50, 450) if task == "snips" else (450,):
            for method, nll in NLL.items():
                figures = {
                    **{"nll": nll, "accuracy": 0.8, "brier": 0.3, "ece": 0.04, "ece_perfect": 0.03, "aurc": 0.1},
                    **{"accepted": 0.6 if method == "served" else 0.3, "accepted_10": 0.7, "unlike": None},
                    **{"accepted_error": 0.04, "accepted_error_10": 0.08},
                    **{
                        "seconds": 12,
                        "forwards": 2,
                        "honest": 150,
                        "left": 0.5,
                        "vs_frequent": [0.3 if task != "hate" else 0.01, 0.02],
                    },
                    **{"vs_temperature": [nll - 0.5, 0.01], "vs_served": [nll - 0.4, 0.01]},
                }
                figures |= changed.get(method, {}) | changed.get(f"{task}_{method}", {})
                place = {"task": task, "base": SMALL, "budget": budget, "method": method}
                records += [place | {"seed": n % 3, "draw": n // 3} | figures for n in range(15)]
    return records


def line(text: str, start: str, after: str = "# ") -> str:
    """Return the first line that begins so below a heading."""
    return next(one for one in text[text.index(after) :].splitlines() if one.startswith(start))


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, []),
        ({"served": {"vs_temperature": [0.001, 0.01]}}, [1]),
        ({"all_labels": {"nll": 0.3, "vs_served": [-0.1, 0.01]}}, [2]),
        ({"snips_all_labels": {"nll": 0.3, "vs_served": [-0.1, 0.01]}}, []),  # one task may be lost
        ({"snips_served": {"vs_temperature": [0.1, 0.01]}, "hate_words": {"vs_frequent": [0.3, 0.02]}}, [1]),
        ({"served": {"accepted": 0.44}}, [3]),
        ({"served": {"accepted_error": 0.056}}, [3]),
        ({"served": {"accepted_error": 0.061}}, [3, 4]),
        ({"map": {}, "words": {"vs_frequent": [0.01, 0.02]}}, [1, 2, 3, 4]),  # no task with skill
    ],
)
def test_a_point_is_met_or_missed_by_its_own_figures(changed: dict[str, dict[str, Any]], missed: list[int]) -> None:
    text = render(made_up(**changed))
    assert [n for n in (1, 2, 3, 4) if "**Missed.**" in line(text, f"{n}. ")] == missed


def test_tables_say_what_the_records_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "DEPARTURES", ["The reason."])
    records = made_up(words={"vs_temperature": [0.01, 0.01]})
    few = [one for one in records if one["method"] != "pool" or (one["seed"] == 0 and one["task"] != "hate")]
    few = [one for one in few if (one["method"], one["task"]) != ("all_labels", "hate")]
    text = render([*few, *({**one, "task": "trec"} for one in records[:1])])
    assert "over the tasks with skill: snips, ag news." in text
    assert "better on 2, tied on 0, worse on 0 of 2." in line(text, "1. ")
    best = f"{page.TITLES['all_labels']} (worse; 0 better)"
    assert f"beyond noise: snips {best}; ag news {best}." in text
    assert "60.0 % against\n   30.0 %, with an error of 4.00 %." in text
    assert "the reference: 0.0 % (snips 0 %, ag news 0 %, hate 0 %)." in text
    served, words, pool, reference = (page.TITLES[name] for name in ("served", "words", "pool", "temperature"))
    assert line(text, f"| {words} ", "## NLL, nats") == f"| {words} | 0.600 | 0.600 | 0.600 |"
    below = "## NLL less"
    assert line(text, f"| {words} ", below) == f"| {words} |{' +10±20 |' * 3} 0, 3, 0 |"
    assert line(text, f"| {served} ", below) == f"| {served} |{' **-100±20** |' * 3} 3, 0, 0 |"
    assert line(text, f"| {pool} ", below) == f"| {pool} | (-80) | (-80) |  |  |"
    assert line(text, f"| {served} ", "### At a target error of 5 %") == f"| {served} |{' 60 (4.0) |' * 4} 0 | 0 |"
    assert line(text, f"| {served} ", "### At a target error of 10 %") == f"| {served} |{' 70 (8.0) |' * 4} 0 |"
    figures = "0.800 | 0.300 | 0.100 | 0.040 | 0.030 | 2.0 | 12 | 30 (4.0) |"
    means = text[text.index("## Means") : text.index("## By number")].splitlines()
    retrained = page.TITLES["all_labels"]
    assert means[-3:-1] == [f"| {reference} | 2 | 0.500 | {figures}", f"| {retrained} | 2 | 0.450 | {figures}"]
    assert not any(pool in row for row in means)  # it lacks seeds, which the other tables mark
    assert line(text, f"| {pool} ", "## NLL, nats") == f"| {pool} | 0.420° | 0.420° |  |"
    assert line(text, f"| {served} ", "### snips") == f"| {served} |{' 0.400 better |' * 2}{' 60 (4.0) |' * 2}"
    assert (
        f"{pool}: 5 of 15 draws: snips, smollm2-135m, 450; ag_news, smollm2-135m, 450; snips, smollm2-135m, 50." in text
    )
    absent = next(one for one in text.splitlines() if page.TITLES["setfit"] in one and " 0 of 3 draws: snips" in one)
    assert page.TITLES["laplace"] in absent
    assert render([]).count("**Missed.**") == 4
    even = torch.full((4, 2), 0.5).double().log()
    (record,) = scored(Unit("snips", SMALL, 450, 0, 0), {"any": Answers(even, even)}, *[torch.arange(4) % 2] * 2)
    assert record.keys() == made_up()[0].keys()
    assert text.endswith("## Departures from the plan\n\n- The reason.\n")
    assert "| trec |" not in text


def test_a_rival_that_nobody_measured_or_a_noisy_best_one_does_not_let_a_point_be_met(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one_seed = [one for one in made_up(all_labels={"vs_served": [-0.2, 0.3]}) if one["method"] != "all_labels"]
    one_seed += [one for one in made_up(all_labels={"vs_served": [-0.2, 0.3]}) if one["seed"] == 0]
    assert "(no verdict; 0 better)" in render(one_seed)
    assert "**Missed.**" in line(render(one_seed), "2. ")
    assert "**Met.**" in line(render(made_up()), "2. ")
    monkeypatch.setattr(page, "RIVALS", ["words", "setfit"])
    assert "**Missed.**" in line(render(made_up()), "2. ")
    assert f"snips {page.TITLES['words']} (worse; 0 better), not measured: setfit" in render(made_up())


def test_the_picture_marks_errors_above_the_target_and_tells_the_cost() -> None:
    drawing = ElementTree.fromstring(picture(made_up(all_labels={"accepted_error": 0.051, "accepted": 0.2})))
    name = "{http://www.w3.org/2000/svg}"
    lines = {one.get("stroke"): one.get("points") for one in drawing.iter(f"{name}polyline")}
    assert sum(len(points.split()) == 2 for points in lines.values()) == 4  # 50 and 450 labels of snips
    assert len([one for one in drawing.iter(f"{name}circle") if one.get("class") == "wrong"]) == 2 + 1  # and the key
    assert "snips, adapter of 90 % of labels, 50 labels: 20%." in drawing.find(f"{name}desc").text
    assert picture([]) == ""
    assert any(one.text == "both together: 2 passes an answer" for one in drawing.iter(f"{name}text"))
