"""The verdict: what ships, with how much review, and what does not, with the noise of the rows."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from report_records import PROMISE, report
from scipy import stats

from laplora.decisions.wanted import Costs
from laplora.report.records import Report, Rows
from laplora.report.verdict import Share, judge, operating_point, rows_needed, rows_to_show

REVIEWED = report(rows=1000, wrong=120, reviewed=300)


def outcomes(one: Report) -> dict[str, str]:
    return {check.title: check.outcome for check in judge(one).checks}


MANY = report(rows=400, wrong=42, reviewed=200, accepted_wrong=8)


def in_groups(one: Report, size: int) -> Report:
    """Return a report whose rows belong together, so many in a row."""
    return replace(one, rows=replace(one.rows, groups=torch.arange(len(one.rows)) // size))


NOTHING = replace(PROMISE, nothing_accepted="map accepts nothing at 5 %")


@pytest.mark.parametrize(
    ("one", "kind", "said"),
    [
        (report(rows=1000, wrong=20, reviewed=0), "ship", "2.0\xa0% (1.2 to 3.1\xa0%) of all 1000 answers are wrong"),
        (in_groups(report(rows=1000, wrong=20, reviewed=0), 1), "ship", "2.0\xa0% (1.2 to 3.1\xa0%)"),
        (in_groups(report(rows=1000, wrong=20, reviewed=0), 20), "open", "2.0\xa0% (0.0 to 10.8\xa0%) of these"),
        (in_groups(report(rows=1000, wrong=0, reviewed=0), 20), "open", "0.0\xa0% (0.0 to 7.1\xa0%) of these"),
        (report(rows=1000, wrong=20, reviewed=15), "ship", "still sends 1.5\xa0% of them to a person"),
        (REVIEWED, "review", "aimed at"),
        (replace(REVIEWED, promise=replace(PROMISE, bounded=True)), "review", "promised even with noise"),
        (
            report(rows=120, wrong=30, reviewed=60),
            "open",
            "stay as rare as here (0 of 60), about 72 accepted rows (140 in all) would",
        ),
        (
            report(rows=120, wrong=30, reviewed=60, accepted_wrong=5),
            "open",
            "shows that the target is kept while 5 of 60 are wrong",
        ),
        (report(rows=1000, wrong=2, reviewed=999), "open", "(0 of 1), about 72 accepted rows (72,000 in all) would"),
        (report(rows=1000, wrong=200, reviewed=300, accepted_wrong=80), "stop", "than noise explains"),
        (report(rows=120, wrong=12, reviewed=120), "stop", "look at every answer: the review rule finds none sure"),
        (replace(report(reviewed=120), promise=NOTHING), "stop", "MAP accepts nothing at 5\xa0%."),
        (report(rows=120, wrong=58, reviewed=60, accepted_wrong=29), "stop", "that the model has learnt the task"),
    ],
)
def test_the_verdict_goes_by_what_is_accepted(one: Report, kind: str, said: str) -> None:
    found = judge(one)
    assert found.kind == kind
    assert said in found.sentence
    assert (kind == "stop") == any(check.decides and check.outcome == "no" for check in found.checks)
    review, accepted = operating_point(one)
    assert (found.title == "Too few rows to say") == (kind == "open")
    if kind == "review":
        assert f"{100 * review.value:.1f}" in found.title
        assert str(accepted) in found.sentence


@pytest.mark.parametrize(
    ("risks", "kind", "said"),
    [
        (
            {"negative": 0.2, "positive": 0.3},
            "review",
            "negative 350, 40 wrong (target 20.0\xa0%); positive 350, 40 wrong",
        ),
        ({"negative": 0.2, "positive": 0.12}, "open", "Intervals reach above the targets of: positive."),
        ({"negative": 0.02, "positive": 0.3}, "stop", "more than noise explains for: negative."),
    ],
)
def test_each_label_is_held_to_a_target_risk_of_its_own(risks: dict[str, float], kind: str, said: str) -> None:
    one = report(rows=1000, wrong=200, reviewed=300, accepted_wrong=80)
    verdict = judge(replace(one, promise=replace(PROMISE, target_risk=0.3, risks=risks)))
    assert (verdict.kind, said in verdict.sentence) == (kind, True)
    decided = [check for check in verdict.checks if "accepted" in check.title]
    assert [check.title for check in decided] == [f"Mistakes among accepted “{label}”" for label in risks]


@pytest.mark.parametrize(
    ("wrong", "review", "kind"), [(2.0, 1.0, "review"), (20.0, 1.0, "open"), (40.0, 1.0, "stop"), (40.0, 0.0, "stop")]
)
def test_with_costs_the_mean_cost_is_held_to_that_of_a_look(wrong: float, review: float, kind: str) -> None:
    one = report(rows=1000, wrong=200, reviewed=1000 if not review else 300, accepted_wrong=35)
    verdict = judge(replace(one, costs=Costs(review=review, wrong=wrong)))
    assert verdict.kind == kind
    assert ("an input costs" if review else "expected to cost at most the look") in verdict.sentence
    assert "error rate of" not in verdict.sentence


def test_that_nothing_is_accepted_is_said_beside_another_verdict() -> None:
    unskilled = replace(report(rows=120, wrong=58, reviewed=60, accepted_wrong=29), promise=NOTHING)
    assert "MAP accepts nothing at 5\xa0%." in judge(unskilled).caveats


def test_the_rows_that_are_needed_are_those_with_which_the_verdict_changes() -> None:
    """A report with four times the rows and mistakes ships as soon as it has as many rows as are said."""
    few = report(rows=120, wrong=22, reviewed=60, accepted_wrong=2)
    said = rows_needed(few)
    accepted, all_rows = (
        int(one.replace(",", "")) for one in re.findall(r"about ([\d,]+) .*\(([\d,]+) in all", said)[0]
    )
    assert said.startswith("If mistakes stay as rare as here (2 of 60), about ")
    assert all_rows == pytest.approx(2 * accepted, rel=0.05)
    kinds = [judge(times(few, count)).kind for count in (0.8 * accepted / 60, 1.2 * accepted / 60)]
    assert kinds == ["open", "review"]
    assert rows_needed(REVIEWED) == ""
    together = in_groups(few, 3)
    assert int(re.findall(r"about ([\d,]+) ", rows_needed(together))[0].replace(",", "")) > accepted


def test_a_threshold_fitted_on_the_rows_says_how_many_of_them_may_be_wrong() -> None:
    """More rows do not show its target, for it aims at it."""

    def refitted(one: Report) -> Report:
        return replace(one, promise=replace(one.promise, refitted=True))

    def said(one: Report) -> str:
        return rows_needed(refitted(one))

    high = f"{100 * Share(8, 200).interval[1]:.1f}\u00a0%"
    assert judge(refitted(MANY)).title == f"Not certain: the true error rate may be {high} (95 % interval)"
    found = re.search(
        r"Of 200 accepted rows at most (\d+) wrong would show that 5\.0.% is kept, and 8 are\.$", said(MANY)
    )
    assert found
    most = int(found[1])
    assert Share(most, 200).interval[1] <= 0.05 < Share(most + 1, 200).interval[1]
    few = report(rows=60, wrong=22, reviewed=20, accepted_wrong=2)
    able = report(rows=60, wrong=6, reviewed=20, accepted_wrong=1)
    assert judge(refitted(able)).title == "Too few rows to say"
    assert said(few).startswith("At least 72 accepted rows (about 110 in all) could show that 5.0\u00a0% is kept")
    near = report(rows=5000, wrong=258, reviewed=10, accepted_wrong=248)
    assert "more than a million accepted rows" in rows_needed(near)


def times(one: Report, count: float) -> Report:
    """Return a report of about so many times the rows."""
    whole = round(count)
    return report(rows=120 * whole, wrong=22 * whole, reviewed=60 * whole, accepted_wrong=2 * whole)


def test_of_too_few_rows_it_is_said_with_how_many_some_would_be_accepted() -> None:
    sure = report(rows=16, wrong=1, reviewed=16)
    assert rows_needed(sure) == "With about 32 rows like these some answers would be accepted."
    hopeless = report(rows=40, wrong=20, reviewed=40)
    half = replace(hopeless, rows=replace(hopeless.rows, labels=(torch.arange(40) // 2) % 2))
    assert rows_needed(half) == "With 640 rows like these none would be accepted either."


@pytest.mark.parametrize(("target", "rows"), [(0.05, 72), (0.1, 36), (0.5, 6), (0.001, 3688)])
def test_so_many_rows_without_a_mistake_show_a_target(target: float, rows: int) -> None:
    assert rows_to_show(target) == rows
    assert Share(0, rows).interval[1] <= target < Share(0, rows - 1).interval[1]


def test_no_artifact_ships_on_rows_that_say_nothing() -> None:
    """The accepted err at most at the target even at the upper end, whatever the kind of shipping."""
    for wrong in range(0, 60, 3):
        for reviewed in (0, 60, 119):
            one = report(rows=120, wrong=wrong, reviewed=reviewed)
            accepted = operating_point(one)[1]
            if judge(one).kind in ("ship", "review"):
                assert accepted.interval[1] <= one.promise.target_risk


def test_rows_that_are_questions_of_one_input_show_nothing() -> None:
    one = replace(report(rows=1000, wrong=20, reviewed=0), questions=4)
    found = judge(one)
    assert found.kind == "open"
    assert found.title == "Not shown: its rows are not independent"
    assert "each input counts as 4 rows" in found.sentence
    assert judge(replace(one, questions=1)).kind == "ship"


def test_skill_that_accuracy_cannot_show_is_shown_by_the_nll() -> None:
    """2 % of rows have the rare label, and get 40 % for it where others get 1 %: it is never the answer."""
    labels = (torch.arange(2000) % 50 == 0).long()
    rare = torch.where(labels == 1, 0.4, 0.01).double()
    skilled = rare_rows(labels, rare)
    assert judge(skilled).kind == "ship"
    assert "hard test where labels are unequal" in " ".join(judge(skilled).caveats)
    share = torch.full((2000,), 0.02, dtype=torch.float64)
    assert judge(rare_rows(labels, share)).kind == "stop"
    assert "not clearly below that of the labels’ shares" in judge(rare_rows(labels, share)).sentence


def rare_rows(labels: torch.Tensor, rare: torch.Tensor) -> Report:
    probs = torch.stack([1 - rare, rare], 1)
    names = [f"row {i}" for i in range(len(labels))]
    rows = Rows(labels, probs, probs, rare, torch.zeros(len(labels), dtype=torch.bool), names)
    return replace(report(), rows=rows)


def test_a_good_artifact_is_stopped_no_more_often_than_stated() -> None:
    """Of artifacts whose accepted answers err exactly at the target, at most 2.5 % are called worse than it."""
    rows, target = 200, 0.05
    mistakes = torch.arange(rows + 1)
    stopped = torch.tensor([Share(int(k), rows).interval[0] > target for k in mistakes])
    chance = stats.binom(rows, target).pmf(mistakes[stopped].numpy()).sum()
    assert 0.001 < chance <= 0.025


def test_what_is_off_by_more_than_chance_is_said() -> None:
    one = report(rows=1000, wrong=20, reviewed=300)
    methods = {name: dict(values) for name, values in one.methods.items()}
    methods["laplace"] |= {"sets": {"coverage": 0.5, "mean_size": 1.0}}
    sure = torch.where(one.rows.probs > 0.5, 0.75, 0.25).double()
    off = replace(one, rows=replace(one.rows, probs=sure), methods=methods, gain=(0.02, 0.01, 0.03), unfamiliar=0.3)
    caveats = " ".join(judge(off).caveats)
    said = ("off by more than chance", "Temperature scaling", "than the 90.0\xa0% that they promise", "are unlike")
    assert all(one in caveats for one in said)
    assert list(outcomes(off).values()).count("no") == 4
    assert judge(off).kind == judge(one).kind


def test_what_few_rows_cannot_tell_is_open() -> None:
    few = report(rows=40, wrong=2, reviewed=20)
    assert outcomes(few)["Mistakes among the accepted"] == "open"
    many = report(rows=1000, wrong=20, reviewed=300)
    assert outcomes(many)["Mistakes among the accepted"] == "yes"
    # What is only not rejected is not called shown.
    found = judge(many)
    assert [check.outcome for check in found.checks if check.decides] == ["yes", "yes"]
    others = {check.title: check.outcome for check in found.checks if not check.decides}
    assert others.pop("NLL below temperature scaling") == "yes"
    assert set(others.values()) <= {"unrejected", "no"}
    assert outcomes(replace(few, gain=(0.0, -0.1, 0.1)))["NLL below temperature scaling"] == "open"
    assert "NLL below temperature scaling" not in outcomes(replace(few, gain=None))
