"""The parts of the speed benchmarks on a tiny model, their command, and the sentences that go by their figures."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from tiny_models import VOCABULARY, tiny_model

from benchmarks.harness import provenance
from benchmarks.harness.record import FOLDER, Conditions, Record, read
from benchmarks.harness.subject import random_batch, with_classes
from benchmarks.harness.timing import Ratio
from benchmarks.speed import __main__ as job
from benchmarks.speed import published
from benchmarks.speed.parts import fit, overload, predict
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.base import Prior, block_precisions
from laplora.predictive.batch_outputs import AdaptedModel, batch_outputs
from laplora.prompts.rows import Batch
from laplora.readouts.label_tokens import LabelTokens

ROOT = Path(job.__file__).parents[2]
MEASURED = {"date": "2026-01-01", "commit": "abc", "command": "c", "threads": "2", "versions": "torch 2"}
HERE = Conditions("a processor, 2 cores", MEASURED)


@pytest.mark.process  # asks git for the commit
def test_a_quick_run_leaves_everything_that_is_published_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One part of a quick run, its figures made up; and where the open loop's files would go."""
    monkeypatch.setattr(provenance, "SCRATCH", tmp_path)
    seen = []

    def run(conditions: Conditions, *, quick: bool) -> list[Record]:
        seen.append((conditions.out, quick))
        return [conditions.record("predict: made up", Ratio(9, 9, 9), "b")]

    monkeypatch.setattr(predict, "run", run)
    before = contents()
    job.main(["--quick", "--only", "predict"])
    assert contents() == before
    assert seen == [(tmp_path, True)]
    assert [r["name"] for r in read(tmp_path)] == ["predict: made up"]
    assert "predict: made up: 9" in capsys.readouterr().out


def contents() -> dict[str, bytes]:
    """Return every published file of figures."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    figures = [p for p in FOLDER.rglob("*") if p.suffix in (".json", ".md", ".png", ".csv")]
    return {str(p): p.read_bytes() for p in [*pages, *figures]}


def test_sentences_of_other_pages_are_made_of_the_published_figures() -> None:
    for path, text in published.pages().items():
        assert path.read_text(encoding="utf-8") == text, "run python -m benchmarks.speed --pages"


@pytest.mark.parametrize(
    ("late", "verdict"),
    [
        (9.0, "met, 8 of 8 by the medians; in every run 8 met and 0 missed, 0 open."),
        (11.0, "**missed**, 7 of 8 by the medians; in every run 7 met and 1 missed, 0 open."),
    ],
)
def test_the_sentence_on_overload_gives_one_verdict_of_all_settings(late: float, verdict: str) -> None:
    settings = {"s": [run_of()], "t": [run_of(refusals_ms=(1.0, late, late))]}
    rows = [asdict(record) for name, runs in settings.items() for record in overload.records(HERE, name, runs)]
    assert published.overload_figures(rows).startswith(verdict)
    assert "not measured" in published.overload_figures([])


def run_of(**twice: object) -> overload.Run:
    figures = {
        "load": 2.0,
        "offered_per_s": 20.0,
        "answered_per_s": 9.5,
        "latencies": (1.0, 2.0, 6.5),
        "refused": 100,
        "refusals_ms": (1.0, 9.0, 9.5),
        "retry_after": (1.0, 1.0, 2.0),
        "told": 100,
        "sent_late_ms": 1.0,
        "otherwise": 0,
    }
    return overload.Run(10.0, (), overload.overload.Load(**{**figures, **twice}), 20, 20)  # type: ignore[arg-type]


def test_the_open_loops_page_is_made_of_its_runs(tmp_path: Path) -> None:
    kept = replace(HERE, out=tmp_path, measured={**MEASURED, "artifact": "a sha256:1"})
    overload.keep({"s": [run_of()], "t": [run_of(otherwise=1)]}, kept)
    page = (tmp_path / "load" / "open_loop.md").read_text(encoding="utf-8")
    assert page == overload.page(json.loads((tmp_path / "load" / "open_loop.json").read_text(encoding="utf-8")))
    assert "**Met: 7 of 8** targets" in page
    (tmp_path / "load" / "open_loop.md").write_text("old")
    job.main(["--pages", "--out", str(tmp_path)])
    assert (tmp_path / "load" / "open_loop.md").read_text(encoding="utf-8") == page
    # 64 rows at 10 a second are 6.4 s, of which 6.5 are 1.02.
    assert (
        "| 1, 2 | 10.0 | 20.0 | 9.5 | 0.95 | 1.00, 2.00, 6.50 | 0.25 | 100 | 1.0, 9.0, 9.5 | 1 (1 to 2) | 1 |" in page
    )
    if (FOLDER / overload.RUNS).is_file():
        published_runs = json.loads((FOLDER / overload.RUNS).read_text(encoding="utf-8"))
        assert overload.page(published_runs) == (FOLDER / overload.PAGE).read_text(encoding="utf-8")


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


def tokens_within(batch: Batch) -> Batch:
    """Return a batch with its tokens folded into the tiny vocabulary."""
    return replace(batch, input_ids=batch.input_ids.remainder(VOCABULARY))
