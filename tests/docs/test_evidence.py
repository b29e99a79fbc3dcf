"""docs/evidence.md says what the pages with the measured tables say."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from documents import ROOT, read, row, words

EVIDENCE = "docs/evidence.md"
TEXT = words(EVIDENCE)
COUNTS = ("none", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.mark.parametrize(
    ("first", "method"),
    [
        ("zero-shot", "zero_shot"),
        ("fine-tuned (MAP)", "map"),
        ("temperature scaling", "temperature"),
        ("temperature, conditioned", "conditioned"),
        ("**Laplace (served)**", "laplace"),
        ("Laplace, conditioned", "laplace_conditioned"),
    ],
)
def test_the_first_table_is_the_artifacts(first: str, method: str) -> None:
    metrics = json.loads(read("artifacts/sst2-smollm2/manifest.json"))["metrics"][method]
    assert row(EVIDENCE, first) == [f"{metrics[name]:.3f}" for name in ("accuracy", "nll", "ece")]


def test_the_results_page_holds_the_artifacts_table() -> None:
    table = read("artifacts/sst2-smollm2/report/results.md").partition("\n")[2]
    assert table.strip() in read("docs/results.md")


def test_shift_is_the_shift_pages() -> None:
    sets = json.loads(read("docs/results/shift.json"))["sets"]
    texts = [sets["arc_questions"], sets["boolq_passages"]]
    low, high = (100 * end(one["unfamiliar"] for one in texts) for end in (min, max))
    assert f"{low:.0f} to {high:.0f} % are flagged as unfamiliar" in TEXT
    assert f"of words of random letters {100 * sets['gibberish-1']['unfamiliar']:.0f} %" in TEXT
    of_map, familiarity = (
        sorted(one["detection"][name]["auroc"] for one in texts) for name in ("map_entropy", "familiarity")
    )
    assert "the AUROC of MAP's is {:.3f} to {:.3f} on such texts".format(*of_map) in TEXT
    assert {f"{value:.2f}" for value in familiarity} == {"0.99"}
    assert "that of familiarity 0.99" in TEXT


def test_the_load_is_the_load_pages() -> None:
    soak, open_loop = read("benchmarks/load/soak.md"), read("benchmarks/load/open_loop.md")
    (answers,) = row("benchmarks/load/soak.md", "rows answered and compared")
    assert row("benchmarks/load/soak.md", "wrong answers") == ["0"]
    assert "memory is flat" in soak
    assert f"{answers} answers were compared and none was wrong; memory stayed flat" in TEXT
    kept, limits = re.findall(r"\*\*Met: (\d) of (\d)\*\*", open_loop)[0]
    assert f"it keeps {COUNTS[int(kept)]} of {COUNTS[int(limits)]} limits" in TEXT


def test_every_generated_page_is_linked() -> None:
    for page in ("results.md", *(f"../{p.relative_to(ROOT)}" for p in ROOT.glob("benchmarks/**/*.md"))):
        assert f"({page}" in read(EVIDENCE), page


def test_what_is_said_of_later_labels_holds() -> None:
    records = [r for r in json.loads(read("benchmarks/later/results.json")) if r["task"] == "trec"]
    assert sorted({r["labels"] for r in records}) == [50, 150, 500, 1000, 2000]

    def verdicts(method: str, style: str) -> dict[str, list[int]]:
        """Return by verdict on a method against the adapter trained anew the numbers of labels."""
        found: dict[str, list[int]] = {"better": [], "level": [], "worse": []}
        for r in sorted(records, key=lambda r: r["labels"]):
            if (r["method"], r["style"]) == (method, style):
                found["better" if r["high"] < 0 else "worse" if r["low"] > 0 else "level"].append(r["labels"])
        return found

    assert verdicts("conditioned", "early") == {"better": [50, 150], "level": [500, 1000], "worse": [2000]}
    assert verdicts("conditioned", "long") == {"better": [50], "level": [150, 500, 1000], "worse": [2000]}
    last = {r["style"]: r["difference"] for r in records if (r["method"], r["labels"]) == ("conditioned", 2000)}
    assert f"better, by {last['early']:.3f} and {last['long']:.3f}" in TEXT
    both = {style: verdicts("retrained_conditioned", style) for style in ("early", "long")}
    assert both["early"] == {"better": [50, 150, 500, 1000, 2000], "level": [], "worse": []}
    assert both["long"] == {"better": [50, 150, 500, 1000], "level": [2000], "worse": []}


def test_what_is_said_of_all_labels_and_a_student_is_the_studys() -> None:
    names = ("all labels, cross-fitted", "5 cross-fitted adapters", "student of the 5")
    gains = [row("benchmarks/evidence/RESULTS.md", name, after="## In short")[2] for name in names]
    first, five, student = (f"{float(found.rpartition(', -')[2]):.3f}" for found in gains)
    said = f"its NLL was {first} nats below temperature scaling's, five adapters' average {five} for five passes"
    assert said in TEXT
    assert f"a student of these (`python -m training distil`) {student} for one" in TEXT


def test_what_is_said_of_ten_members_is_the_studys() -> None:
    names = ("10 dropout masks", "SWAG, 10 samples", "training-free Bayesian, 10 samples")
    found = [row("benchmarks/evidence/RESULTS.md", f"{name} + temperature", after="## In short")[2] for name in names]
    assert all("(1 open)" in cell for cell in found)
    dropout, swag, tfb = (f"{float(cell.rpartition(', ')[2]):+.3f}" for cell in found)
    assert f"with a temperature {dropout}, {swag} and {tfb} nats, for ten forward passes" in TEXT


def test_what_is_said_of_two_orders_is_the_studys() -> None:
    heading = "| arc_easy | openbookqa |"
    verdicts = row("benchmarks/evidence/RESULTS.md", "2 orders of the options + temperature", after=heading)
    tasks = [cell.strip("*") for cell in verdicts]
    found = [re.fullmatch(r"-(0\.\d+) \(-(0\.\d+) to -(0\.\d+)\)", cell) for cell in tasks]
    arc_easy, openbookqa = (match for match in found if match)  # both beyond noise, and no other task has options
    for name, match in (("ARC-Easy", arc_easy), ("OpenBookQA", openbookqa)):
        assert f"{match[1]} ({match[3]} to {match[2]}) on {name}" in TEXT
    assert f"had an NLL lower by {arc_easy[1]} and {openbookqa[1]} nats" in " ".join(read("README.md").split())
    records = [r for r in json.loads(read("docs/results/evidence.json")) if r["budget"] == 450]
    gains = {
        task: 100 * (mean(records, task, "orders_temperature") - mean(records, task, "temperature"))
        for task in ("arc_easy", "openbookqa")
    }
    assert abs(gains["arc_easy"]) < 0.5
    assert f"right {gains['openbookqa']:.1f} points more often" in TEXT


def mean(records: list[dict[str, Any]], task: str, method: str) -> float:
    values = [r["accuracy"] for r in records if (r["task"], r["method"]) == (task, method)]
    return sum(values) / len(values)


def test_what_is_said_of_labels_is_the_curves() -> None:
    def with_labels(name: str) -> dict[str, float]:
        cells = row("benchmarks/curves/RESULTS.md", f"NLL, nats | {name}", after="| 50 | 150 | 450 | 1,000 | 2,000 |")
        return dict(
            zip(("50", "150", "450", "1,000", "2,000"), (float(cell.split()[0]) for cell in cells), strict=True)
        )

    scaled, conditioned = with_labels("temperature scaling"), with_labels("temperature, conditioned")
    gains = {labels: f"{scaled[labels] - conditioned[labels]:.3f}" for labels in scaled}
    said = f"by {gains['50']} with 50 labels, {gains['450']} with 450 and {gains['2,000']} with 2,000"
    assert said in TEXT


def test_what_is_said_of_epochs_is_the_curves() -> None:
    def from_four_epochs(name: str) -> list[str]:
        cells = row("benchmarks/curves/RESULTS.md", f"NLL, nats | {name}", after="| 0 | 2 | 4 | 6 | 8 | 10 |")
        return [cell.partition(" ")[0] for cell in cells[2:]]

    assert f"was {from_four_epochs('MAP')[0]} after 4 epochs and {from_four_epochs('MAP')[-1]} after 10" in TEXT
    scaled, laplace = sorted(from_four_epochs("temperature scaling")), sorted(from_four_epochs("Laplace"))
    said = f"With a temperature it stayed between {scaled[0]} and {scaled[-1]}, with Laplace between {laplace[0]} and"
    assert f"{said} {laplace[-1]}" in TEXT
