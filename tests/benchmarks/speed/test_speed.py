"""The parts of the speed benchmarks on a tiny model, their command, and the sentences that go by their figures."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_models import VOCABULARY, tiny_model

from benchmarks.harness.record import Conditions, Record, read
from benchmarks.harness.subject import random_batch, with_classes
from benchmarks.harness.timing import Ratio
from benchmarks.speed import __main__ as job
from benchmarks.speed.parts import fit, overload, pool, predict
from laplora.execution.progress import Silent
from laplora.features.outputs import Outputs
from laplora.fitting.fitted_heads import learned
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.base import Prior, block_precisions
from laplora.predictive.batch_outputs import AdaptedModel, batch_outputs
from laplora.prompts.rows import Batch
from laplora.readouts.label_tokens import LabelTokens
from laplora.settings import FitSettings

MEASURED = {"date": "2026-01-01", "commit": "abc", "command": "c", "threads": "2", "versions": "torch 2"}
HERE = Conditions("a processor, 2 cores", MEASURED)


@pytest.mark.process  # asks git for the commit
def test_a_quick_run_leaves_everything_that_is_published_alone(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One part of a quick run, its figures made up."""
    seen = []

    def run(conditions: Conditions, *, quick: bool) -> list[Record]:
        seen.append((conditions.out, quick))
        return [conditions.record("predict: made up", Ratio(9, 9, 9), "b")]

    monkeypatch.setattr(predict, "run", run)
    job.main(["--quick", "--only", "predict"])
    assert seen == [(scratch, True)]
    assert [r["name"] for r in read(scratch)] == ["predict: made up"]
    assert "predict: made up: 9" in capsys.readouterr().out


def run_of(*, let_in: int = 20, **twice: float) -> overload.Run:
    """A capacity of 10 a second: a queue of 256 rows takes 25.6 s, and one and a half times that is 38.4."""
    figures = {"answered_per_s": 9.5, "latency_s": 30.0, "refused": 100, "refusal_ms": 9.0, "told": 100, "otherwise": 0}
    return overload.Run(10.0, overload.overload.Load(**figures | twice), 20, let_in)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("run", "missed"),
    [
        (run_of(), None),
        (run_of(answered_per_s=8.9), 0),
        (run_of(latency_s=39.0), 1),
        (run_of(refusal_ms=11.0), 2),
        (run_of(told=99), 3),
        (run_of(let_in=19), 3),
        (run_of(otherwise=1), 3),
    ],
)
def test_each_limit_at_twice_the_capacity_can_be_missed(run: overload.Run, missed: int | None) -> None:
    met = [record.met for record in overload.records(HERE, "s", [run]) if record.target]
    assert [i for i, ok in enumerate(met) if not ok] == ([] if missed is None else [missed])


def test_a_load_that_never_filled_the_queue_says_nothing_of_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = [run_of(refused=0, told=0)]
    names = [record.name for record in overload.records(HERE, "s", idle)]
    assert not any("refusals" in name for name in names)
    monkeypatch.setattr(overload, "served", lambda *_given, **_cores: nullcontext("url"))
    monkeypatch.setattr(overload.overload, "measure", lambda *_given, **_options: idle)
    with pytest.raises(RuntimeError, match="refused nothing"):
        list(overload.run(HERE, quick=False))


@pytest.mark.parametrize("structure", fit.STRUCTURES)
def test_parts_time_what_they_say(structure: str) -> None:
    """On a tiny model: batches have padding, a posterior of the structure comes out, labels can be exchanged."""
    model = tiny_model("llama", targets=["q_proj", "v_proj"], dtype=None)
    blocks = find_blocks(model, 2)
    adapted = AdaptedModel(model, {}, LabelTokens((3, 4)))
    batch = tokens_within(random_batch(adapted, 4, 8, padded=True))
    assert batch.attention_mask.sum(1).tolist() == [6, 8, 6, 8]
    posterior = fit.fit(adapted, blocks, [batch], structure)
    assert posterior.structure == structure
    precisions = block_precisions(Prior("scalar", {"all": 1.0}), blocks)
    five = with_classes(AdaptedModel(model, {}, LabelTokens((3, 4)), posterior, precisions), 5)
    five = replace(
        five, readout=LabelTokens(tuple(range(5)))
    )  # with_classes takes tokens that the tiny vocabulary lacks
    found = batch_outputs(five, tokens_within(random_batch(five, 4, 8)), covariance=True)
    assert found.covariance is not None
    assert found.covariance.shape == (4, 4, 4)


def test_the_pool_part_learns_the_later_rows_of_its_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "ROWS", 40)
    monkeypatch.setattr(pool, "LATER", 20)
    texts = pool.examples(60, pool.SHORT)
    assert {len(one.fields["text"].split()) for one in texts} == {pool.SHORT}
    states = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    outputs = Outputs(torch.ones(60, 6, dtype=torch.bool), {}, {name: {"mean.1": states} for name in pool.HEADS})
    heads = pool.fitted(outputs, 6)
    rows, labels = pool.later(outputs, 6, heads, 20)
    after = learned(heads, rows, labels, FitSettings(), Silent())
    assert len(after.labelled) == 60
    assert torch.equal(after.labelled.labels, pool.labelled(60, 6).labels)
    assert all(len(one.places) == 60 for one in after.experts.values())


def tokens_within(batch: Batch) -> Batch:
    """Return a batch with its tokens folded into the tiny vocabulary."""
    return replace(batch, input_ids=batch.input_ids.remainder(VOCABULARY))
