"""How the speed benchmarks take, judge and keep their figures; and that each part runs on a real model."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import VOCABULARY, tiny_model

from benchmarks.speed import __main__ as job
from benchmarks.speed import fast, fit, subset
from benchmarks.speed.record import Conditions, merged, render, write
from benchmarks.speed.subject import random_batch, with_classes
from benchmarks.speed.timing import Ratio, in_turns, ratio
from laplora.jacobians import find_blocks
from laplora.member_outputs import Member, MemberSet, member_outputs
from laplora.posterior import Prior, block_precisions
from laplora.prompts import Batch

HERE = Conditions("a processor, 2 cores", {"date": "2026-01-01", "command": "c", "threads": "2", "versions": "torch 2"})


def test_functions_take_turns_and_the_first_turn_does_not_count() -> None:
    called = []
    times = in_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, 3)
    assert called == ["a", "b"] * 4
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 3, "b": 3}


def test_times_are_seconds_of_the_call_alone() -> None:
    times = in_turns({"sleep": lambda: time.sleep(0.02), "nothing": lambda: None}, 2)
    assert min(times["sleep"]) >= 0.02
    assert ratio(times, "sleep", "nothing").low > 1


def test_ratios_are_taken_within_a_turn() -> None:
    """A machine that was three times slower in the second turn changes no ratio."""
    found = ratio({"a": [2.0, 6.0, 2.2], "b": [1.0, 3.0, 1.0]}, "a", "b")
    assert (found.value, found.low, found.high) == (2.0, 2.0, 2.2)


@pytest.mark.parametrize(
    ("side", "limit", "met"), [("at most", 2.0, False), ("at least", 2.0, True), (None, None, None)]
)
def test_verdicts(side: str | None, limit: float | None, met: bool | None) -> None:
    record = HERE.record("p: w", Ratio(2.1234, 2.0, 3.0), "b", limit=limit, side=side or "at most")  # type: ignore[arg-type]
    assert (record.met, record.value) == (met, 2.12)
    assert record.target == (None if side is None else f"{side} 2")


def test_a_figure_takes_the_place_of_the_same_on_the_same_hardware(tmp_path: Path) -> None:
    elsewhere = Conditions("another, 8 cores", HERE.measured)
    results, page = tmp_path / "results.json", tmp_path / "RESULTS.md"
    write(
        [HERE.record("p: w", Ratio(1, 1, 1), "b"), HERE.record("p: x", Ratio(2, 2, 2), "b", limit=1.0)], results, page
    )
    write([elsewhere.record("p: w", Ratio(3, 3, 3), "b"), HERE.record("p: w", Ratio(4, 4, 4), "b")], results, page)
    kept = json.loads(results.read_text())
    assert [(r["name"], r["hardware"], r["value"]) for r in kept] == [
        ("p: w", HERE.hardware, 4.0),
        ("p: x", HERE.hardware, 2.0),
        ("p: w", elsewhere.hardware, 3.0),
    ]
    assert set(kept[0]) >= {"name", "value", "low", "high", "baseline", "target", "met", "hardware"}
    text = page.read_text()
    assert "Targets met: 0 of 1." in text
    assert "| x | 2 | 2 to 2 | b | at most 1 | **missed** |" in text
    assert merged(kept, []) == kept


def test_the_published_page_is_made_of_the_published_figures() -> None:
    folder = Path(job.__file__).parents[1]
    assert render(json.loads((folder / "results.json").read_text())) == (folder / "RESULTS.md").read_text()


def test_versions_are_those_of_what_is_installed() -> None:
    more = HERE.with_versions("torch", "no-such-package", "pytest")
    assert more.measured["versions"] == f"torch 2, torch {torch.__version__}, pytest {pytest.__version__}"
    assert more.record("p: w", Ratio(1, 1, 1), "b").measured == {**HERE.measured, **more.measured}
    assert HERE.with_versions("no-such-package") == HERE


@pytest.mark.parametrize("structure", fit.STRUCTURES)
def test_parts_time_what_they_say(structure: str) -> None:
    """On a tiny model: batches have padding, a posterior of the structure comes out, labels can be exchanged."""
    model = tiny_model("llama", targets=["q_proj", "v_proj"], dtype=None)
    blocks = find_blocks(model, 2)
    members = MemberSet(model, {}, (3, 4), Member())
    batch = tokens_within(random_batch(members, 4, 8, padded=True))
    assert batch.attention_mask.sum(1).tolist() == [6, 8, 6, 8]
    posterior = fit.fit(members, blocks, [batch], structure)
    assert posterior.structure == structure
    precisions = block_precisions(Prior("scalar", {"all": 1.0}), blocks)
    five = with_classes(MemberSet(model, {}, (3, 4), Member({}, posterior, precisions)), 5)
    five = replace(five, label_ids=tuple(range(5)))  # with_classes takes tokens that the tiny vocabulary lacks
    found = member_outputs(five, tokens_within(random_batch(five, 4, 8)), {("single", True)})
    assert found.covariances["single"].shape == (1, 4, 4, 4)


def test_a_posterior_over_the_values_b_is_smaller_and_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record there is, on a tiny model: each subset and the two against each other, then the files."""
    model = tiny_model("llama", targets=["q_proj", "v_proj"], dtype=None)
    monkeypatch.setattr(subset, "load_subject", lambda _format: MemberSet(model, {}, (3, 4), Member()))
    monkeypatch.setattr(subset, "with_classes", lambda members, n: replace(members, label_ids=tuple(range(n))))
    monkeypatch.setattr(subset, "TOKENS", 8)
    found = {record.name: record for record in subset.run(HERE, quick=True)}
    assert len(found) == 8
    assert found["subset: values_b to all, 4 classes, 8 x 8 tokens"].baseline == "an answer under the whole posterior"
    # A joint core keeps 50 directions at most and the tiny adapter has few numbers: a third of them is in values_b.
    assert found["subset: posterior file, values_b"].value < 0.6 * found["subset: posterior file, all"].value
    blocks = subset.with_posterior(MemberSet(model, {}, (3, 4), Member()), "values_b").trained.posterior.blocks
    assert {block.name.split(".", 3)[3] for block in blocks} == {"self_attn.v_proj.lora_B"}


def test_mode_fast_is_measured_on_test_rows_and_its_fidelity_is_the_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record there is, on the default artifact: a few tokens, a few rows."""
    monkeypatch.setattr(fast, "SIZES", ((1, 8), (2, 8)))
    monkeypatch.setattr(fast, "ROWS", {True: 6, False: 6})
    found = {record.name: record for record in fast.run(HERE, quick=True)}
    assert set(found) == {
        "fast: covariance, 2 x 8 tokens",
        "fast: handed over",
        "fast: test rows as served",
        "fast: test rows exactly",
        "fast: NLL alone",
        "fast: NLL as served",
        "fast: rank correlation of the variances",
        "fast: log correlation of the variances",
        "fast: decisions",
    }
    assert found["fast: handed over"].value in {round(n / 6, 3) for n in range(7)}
    assert found["fast: test rows exactly"].low > 1
    artifact = json.loads((fast.ARTIFACT / "manifest.json").read_text())
    fidelity = artifact["metrics"]["fast"]["fidelity"]
    assert found["fast: NLL alone"].value == pytest.approx(fidelity["nll"] / fidelity["laplace_nll"], abs=0.01)


def tokens_within(batch: Batch) -> Batch:
    """Return a batch with its tokens folded into the tiny vocabulary."""
    return replace(batch, input_ids=batch.input_ids.remainder(VOCABULARY))
