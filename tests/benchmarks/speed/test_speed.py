"""How the speed benchmarks take, judge and keep their figures; and that each part runs on a real model."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from tiny_models import VOCABULARY, tiny_model

from benchmarks.harness import page as results_page
from benchmarks.harness import provenance
from benchmarks.harness.record import FOLDER, Conditions, Record, keep, read
from benchmarks.harness.subject import random_batch, with_classes
from benchmarks.harness.timing import Ratio, in_turns, ratio
from benchmarks.speed import __main__ as job
from benchmarks.speed import published
from benchmarks.speed.parts import fast, fit, overload, predict, start, subset
from laplora.jacobians.contrasts import find_blocks
from laplora.posterior.base import Prior, block_precisions
from laplora.predictive.member_outputs import Member, MemberSet, member_outputs
from laplora.prompts.rows import Batch

ROOT = Path(job.__file__).parents[2]
MEASURED = {"date": "2026-01-01", "commit": "abc", "command": "c", "threads": "2", "versions": "torch 2"}
HERE = Conditions("a processor, 2 cores", MEASURED)


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
    assert (record.met, record.value) == (met, 2.1234)
    assert record.target == (None if side is None else f"{side} 2")


@pytest.mark.parametrize(
    ("side", "figures", "expected"),
    [
        ("at most", (1.9, 1.8, 2.1), "open"),
        ("at most", (2.1, 1.9, 2.2), "open"),
        ("at most", (1.9, 1.8, 2.0), "open"),
        ("at most", (1.9, 1.8, 1.99), "met"),
        ("at most", (2.1, 2.01, 2.2), "missed"),
        ("at least", (2.1, 1.9, 2.2), "open"),
        ("at least", (2.1, 2.01, 2.2), "met"),
        ("at least", (1.9, 1.8, 1.99), "missed"),
        ("at most", (2.0, 2.0, 2.0), "met"),
        ("at least", (2.0, 2.0, 2.0), "met"),
        (None, (2.0, 1.0, 3.0), None),
    ],
)
def test_a_target_is_met_or_missed_where_every_turn_says_so(
    side: str | None, figures: tuple[float, float, float], expected: str | None
) -> None:
    limit = None if side is None else 2.0
    record = HERE.record("p: w", Ratio(*figures), "b", limit=limit, side=side or "at most")  # type: ignore[arg-type]
    assert results_page.verdict(asdict(record)) == expected


def test_open_targets_are_counted_apart_and_keep_the_medians_word(tmp_path: Path) -> None:
    """An overhead of 3.58 ms between -2.15 and 23.8 is no proof of at most 5; nor is 2.21 of more than 2.2."""
    overhead = HERE.record("p: overhead", Ratio(3.58, -2.15, 23.8), "ms", limit=5.0)
    kept_by(
        tmp_path,
        overhead,
        HERE.record("p: answer", Ratio(2.21, 2.07, 2.46), "b", limit=2.2),
        HERE.record("p: sure", Ratio(1, 0.9, 1.1), "b", limit=2.2),
        HERE.record("g: grows", Ratio(1, 0.9, 1.2), "the exponent", arithmetic=1.1),
    )
    page = page_of(tmp_path)
    counts = "Met in every turn: 1. Missed in every turn: 0. Open: 2 (by the median 1 met, 1 missed)."
    assert page.count(counts) == 2
    assert f"Targets: 3. {counts} Not measured yet: 0." in page
    assert "By the medians alone,\n2 of the 3 measured are met." in page
    assert "| p | overhead | 3.58 | -2.15 to 23.8 | ms | at most 5 | open; met by the median |" in page
    assert "| p | answer | 2.21 | 2.07 to 2.46 | b | at most 2.2 | open; **missed** by the median |" in page
    assert "| grows | 1 | 0.9 to 1.2 | the exponent | at most 1.1 | open; so it is by the median |" in page
    assert "1 figures; 0 of 1 as arithmetic says, 1 open" in page
    assert overhead.line.endswith("(target at most 5) open, met by the median")


def test_what_is_not_measured_is_listed_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results_page, "EXPECTED", {"c": ("p: w", "p: x"), "d": ("q: y",)})
    kept_by(tmp_path, HERE.record("p: w", Ratio(1, 1, 1), "b", limit=2.0))
    assert "## Not measured yet" not in page_of(tmp_path), "only the published page lists what is missing"
    text = results_page.render(read(tmp_path), published=True)
    assert "Targets: 3. Met in every turn: 1. Missed in every turn: 0. Open: 0. Not measured yet: 2." in text
    table = text.partition("## Not measured yet")[2].strip().splitlines()[2:]
    assert table == ["| p | x | target | `c` |", "| q | y | target | `d` |"]


def test_a_figure_takes_the_place_of_the_same_on_the_same_hardware(tmp_path: Path) -> None:
    elsewhere = Conditions("another, 8 cores", HERE.measured)
    kept_by(tmp_path, HERE.record("p: w", Ratio(1, 1, 1), "b"), HERE.record("p: x", Ratio(2, 2, 2), "b", limit=1.0))
    kept_by(tmp_path, elsewhere.record("p: w", Ratio(3, 3, 3), "b"))
    kept_by(tmp_path, HERE.record("p: x", Ratio(2, 2, 2), "b", limit=1.0), HERE.record("p: w", Ratio(4, 4, 4), "b"))
    kept = read(tmp_path)
    assert [(r["name"], r["hardware"], r["value"]) for r in kept] == [
        ("p: w", HERE.hardware, 4.0),
        ("p: x", HERE.hardware, 2.0),
        ("p: w", elsewhere.hardware, 3.0),
    ]
    assert set(kept[0]) >= {"name", "value", "low", "high", "baseline", "target", "met", "kind", "hardware"}
    assert "Targets: 1. Met in every turn: 0. Missed in every turn: 1. Open: 0. Not measured" in page_of(tmp_path)
    assert "| p | x | 2 | 2 to 2 | b | at most 1 | **missed** |" in page_of(tmp_path)


def kept_by(folder: Path, *records: Record) -> None:
    assert list(keep(records, folder)) == list(records)


def page_of(folder: Path) -> str:
    return (folder / "RESULTS.md").read_text(encoding="utf-8")


def test_what_a_part_measures_no_more_goes_with_its_next_run(tmp_path: Path) -> None:
    kept_by(tmp_path, *(HERE.record(name, Ratio(1, 1, 1), "b") for name in ("p: old", "p: w", "q: other")))
    kept_by(tmp_path, HERE.record("p: w", Ratio(2, 2, 2), "b"))
    assert [(r["name"], r["value"]) for r in read(tmp_path)] == [("p: w", 2.0), ("q: other", 1.0)]


def test_a_run_that_ends_early_leaves_the_old_figures_it_did_not_reach(tmp_path: Path) -> None:
    kept_by(tmp_path, *(HERE.record(name, Ratio(1, 1, 1), "b") for name in ("p: w", "p: x")))
    half = keep([HERE.record("p: w", Ratio(2, 2, 2), "b")], tmp_path)
    next(half)
    half.close()
    assert [(r["name"], r["value"]) for r in read(tmp_path)] == [("p: w", 2.0), ("p: x", 1.0)]


def test_targets_that_were_set_are_counted_apart_from_what_was_measured(tmp_path: Path) -> None:
    """Growth and sizes are compared with arithmetic: neither what holds there nor what does not is a target."""
    kept_by(
        tmp_path,
        HERE.record("p: set", Ratio(1, 1, 1), "b", limit=2.0),
        HERE.record("g: grows", Ratio(1, 1, 1), "the exponent", arithmetic=1.1),
        HERE.record("g: grows faster", Ratio(2, 2, 2), "the exponent", arithmetic=1.1),
        HERE.record("g: plain", Ratio(2, 2, 2), "ms"),
    )
    assert [r["kind"] for r in read(tmp_path)] == ["target", "check", "check", "figure"]
    page = page_of(tmp_path)
    assert "Targets: 1. Met in every turn: 1. Missed in every turn: 0. Open: 0." in page
    assert "### Targets measured: 1" in page
    assert "### Measured beside them: 3 figures; 1 of 2 as arithmetic says" in page
    assert "| grows faster | 2 | 2 to 2 | the exponent | at most 1.1 | **not so** |" in page


def test_each_part_says_when_and_from_what_it_was_measured(tmp_path: Path) -> None:
    kept_by(tmp_path, HERE.record("p: w", Ratio(1, 1, 1), "b"))
    assert "| p | `c` | 2026-01-01 | abc |  | 2 | torch 2 |" in page_of(tmp_path)
    for record in read(FOLDER):
        assert {"date", "commit", "command"} <= set(record["measured"]), record["name"]


def test_growth_and_sizes_are_no_targets_of_the_published_page() -> None:
    kinds = {r["name"]: r["kind"] for r in read(FOLDER)}
    assert {kind for name, kind in kinds.items() if name.startswith("growth: ")} == {"check"}
    assert {kind for name, kind in kinds.items() if name.endswith("to formula")} == {"check"}
    assert "target" in kinds.values()


@pytest.mark.process  # asks git for the commit
def test_a_quick_run_leaves_everything_that_is_published_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One part of a quick run, its figures made up; and where the growth's files and the open loop's would go."""
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


def test_make_bench_quick_is_such_a_run() -> None:
    assert "benchmarks.speed $(if $(QUICK),--quick)" in (ROOT / "Makefile").read_text(encoding="utf-8")
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    assert provenance.SCRATCH.relative_to(ROOT).parts[0] + "/" in ignored


def test_the_published_page_is_made_of_the_published_figures() -> None:
    assert results_page.render(read(FOLDER), published=True) == (FOLDER / "RESULTS.md").read_text(encoding="utf-8")


def test_sentences_of_other_pages_are_made_of_the_published_figures() -> None:
    for path, text in published.pages(ROOT, read(FOLDER)).items():
        assert path.read_text(encoding="utf-8") == text, "run python -m benchmarks.speed --pages"


def test_the_sentence_on_fast_follows_from_its_row() -> None:
    def rows(many: float) -> list[dict[str, object]]:
        values = {
            "fast as served, 32 clients": many,
            "laplace as served, 32 clients": 2.2,
            "fast as served, one client": 1.5,
            "handed over": 0.2,
        }
        made = [HERE.record(f"fast: {name}", Ratio(v, v, v), "b") for name, v in values.items()]
        return [asdict(record) for record in made]

    assert published.fast_costs(rows(1.4)) == (
        "1.4 MAP answers as served to 32 clients at once, where a Laplace answer costs 2.2, "
        "and 1.5 to one client alone (SST-2, 20 % of the rows deferred)"
    )
    assert published.fast_costs(rows(1.3)).startswith("1.3 ")
    assert not any(c.isdigit() for c in published.fast_costs([]))


def test_the_sentence_on_overload_gives_one_verdict_of_all_settings() -> None:
    def rows(late: float) -> list[dict[str, object]]:
        settings = [("s", [run_of()]), ("t", [run_of(refusals_ms=(1.0, late, late))])]
        return [asdict(r) for name, runs in settings for r in overload.records(HERE, name, runs)]

    assert published.overload_figures(rows(9.0)).startswith(
        "met, 8 of 8 by the medians; in every run 8 met and 0 missed, 0 open."
    )
    assert published.overload_figures(rows(11.0)).startswith(
        "**missed**, 7 of 8 by the medians; in every run 7 met and 1 missed, 0 open."
    )
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
    return overload.Run(10.0, (), overload.Load(**{**figures, **twice}), 20, 20)  # type: ignore[arg-type]


def test_the_open_loops_page_is_made_of_its_runs(tmp_path: Path) -> None:
    kept = replace(HERE, out=tmp_path, measured={**MEASURED, "artifact": "a sha256:1"})
    overload.keep({"s": [run_of()], "t": [run_of(otherwise=1)]}, kept)
    page = (tmp_path / "load" / "open_loop.md").read_text(encoding="utf-8")
    assert page == overload.page(json.loads((tmp_path / "load" / "open_loop.json").read_text(encoding="utf-8")))
    assert "**Met: 7 of 8** things asked" in page
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


def test_the_open_loops_page_says_in_how_many_runs_each_is_met() -> None:
    """Refusals in 9 ms by the median, and in 11 in one run of three."""
    runs = [run_of(), run_of(), run_of(refusals_ms=(1.0, 11.0, 12.0))]
    page = overload.overload.page({"s": runs}, "now", queue_rows=overload.QUEUE_ROWS, mode="map")
    assert "- met (met in 3 of 3 runs): answers are" in page
    assert "- met (met in 2 of 3 runs): 95 % of the refusals take at most 9.0 ms" in page


def test_a_load_that_never_filled_the_queue_says_nothing_of_refusals(monkeypatch: pytest.MonkeyPatch) -> None:
    idle = [run_of(refused=0, told=0)]
    names = [record.name for record in overload.records(HERE, "s", idle)]
    assert not any("refusals" in name for name in names)
    monkeypatch.setattr(overload, "served", lambda *_given, **_cores: nullcontext("url"))
    monkeypatch.setattr(overload.overload, "measure", lambda *_given, **_options: idle)
    with pytest.raises(RuntimeError, match="refused nothing"):
        list(overload.run(HERE, quick=False))


def test_a_commit_says_whether_its_code_was_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        names = ["-c", "user.name=n", "-c", "user.email=e@example.com"]
        subprocess.run(["git", "-C", str(tmp_path), *names, *arguments], check=True, capture_output=True)

    assert provenance.commit(tmp_path) == "unknown"
    git("init", "-q")
    for name in ("a.py", "page.md"):
        (tmp_path / name).write_text("one")
    git("add", "-A")
    git("commit", "-q", "-m", "m")
    head = provenance.commit(tmp_path)
    assert len(head) == 10
    (tmp_path / "page.md").write_text("two")  # what a run writes is no change of what it measures
    assert provenance.commit(tmp_path) == head
    (tmp_path / "a.py").write_text("two")
    assert provenance.commit(tmp_path) == f"{head} with changes"


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


def test_a_server_that_is_slow_to_stop_is_no_slower_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def slow() -> Iterator[str]:
        yield "address"
        now.append(100.0)

    now = [0.0]
    monkeypatch.setattr(start, "served", slow)
    monkeypatch.setattr(start.time, "perf_counter", lambda: now[-1])
    assert start.seconds_to_ready() == 0.0
    assert now == [0.0, 100.0]


@pytest.mark.usefixtures("base_model_folder")
def test_the_fidelity_of_mode_fast_is_the_artifacts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record there is but those as served, on the default artifact: a few tokens, a few rows."""
    monkeypatch.setattr(fast, "SIZES", ((1, 8), (2, 8)))
    monkeypatch.setattr(fast, "served", lambda: nullcontext("address"))
    asked = []
    monkeypatch.setattr(fast, "as_served", lambda *given, turns: asked.append((*given[1:], turns)) or ())
    found = {record.name: record for record in fast.run(HERE, quick=True)}
    assert set(found) == {
        "fast: covariance, 2 x 8 tokens",
        "fast: NLL alone",
        "fast: NLL as served",
        "fast: rank correlation of the variances",
        "fast: log correlation of the variances",
        "fast: decisions",
    }
    [(address, texts, turns)] = asked
    assert (address, len(set(texts)), turns) == ("address", 64, 1)
    artifact = json.loads((fast.ARTIFACT / "manifest.json").read_text())
    fidelity = artifact["metrics"]["fast"]["fidelity"]
    assert found["fast: NLL alone"].value == pytest.approx(fidelity["nll"] / fidelity["laplace_nll"], abs=0.01)


def tokens_within(batch: Batch) -> Batch:
    """Return a batch with its tokens folded into the tiny vocabulary."""
    return replace(batch, input_ids=batch.input_ids.remainder(VOCABULARY))
