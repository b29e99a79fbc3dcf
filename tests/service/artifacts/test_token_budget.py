"""The token budget is measured: batches grow until memory, time or what is gained says stop; nothing fails a load."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from serving import FakePredictor, artifacts_in, changed, library, settings, started

from laplora.errors import NonFiniteError
from laplora.predictor import Predictor
from laplora.prompts.rows import EncodedRow
from service.app import create_app
from service.artifacts.predictors import Library
from service.artifacts.token_budget import (
    BATCH_S,
    FEWEST_TOKENS,
    FIRST_TOKENS,
    MEMORY_SHARE,
    UNMEASURED_TOKENS,
    CudaMeter,
    Usage,
    measure_budget,
)
from service.scoring.model import SHORT_ROW_TOKENS

MIB = 2**20


@dataclass
class Card:
    """A device with so much memory, on which a batch takes so much memory a row, a MiB a token, and time.

    Attributes:
        duration_s: of a batch of so many padded tokens by ``laplace``.
        broken: batches of more tokens run out of memory, whatever was counted.
    """

    free: int = 10**15
    row_bytes: int = 0
    duration_s: Callable[[int], float] = lambda tokens: 0.001
    broken: float = math.inf
    predictor: FakePredictor = field(default_factory=lambda: FakePredictor(max_tokens=256))
    released: int = 0

    def free_bytes(self) -> int:
        return self.free

    def measure(self, run: Callable[[], object]) -> Usage:
        run()
        name, rows = self.predictor.batches[-1]
        tokens, times = len(rows) * max(len(row.token_ids) for row in rows), 2 if name == "laplace" else 1
        used = times * (len(rows) * self.row_bytes + tokens * MIB)
        if used > self.free or tokens > self.broken:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return Usage(used, self.duration_s(tokens) * times / 2)

    def release(self) -> None:
        self.released += 1

    def budget(self, **options: Any) -> Any:
        return measure_budget(self.predictor, self, lambda f: f(), **{"most_tokens": 65_536} | options)


LARGE = 10_000 * MIB
#: What a card has, what is asked of it, the budget, and what is said of it.
MEASURED: dict[str, tuple[dict[str, Any], dict[str, Any], int, str]] = {
    # laplace takes 2 MiB a token: 2,048 take 4,000 of the 8,000 that may be used, 4,096 would take 8,192.
    "memory": ({"free": LARGE}, {}, 2048, "4096 tokens would take more than the 7.81 GiB"),
    "room for further artifacts": ({"free": LARGE}, {"reserved_bytes": 4_000 * MIB}, 2048, ""),
    "at most half of what is free": ({"free": LARGE}, {"reserved_bytes": 10**12}, 1024, ""),
    # A short row's token costs four times.
    "rows with memory of their own": ({"free": LARGE, "row_bytes": SHORT_ROW_TOKENS * 3 * MIB}, {}, 512, ""),
    "slow": ({"duration_s": lambda tokens: 0.02 + tokens * BATCH_S / 12_000}, {}, 8192, f"more than {BATCH_S:g}"),
    "not worth it": (
        {"duration_s": lambda tokens: max(tokens, 2048) * 1e-6},
        {},
        2048,
        "1.00 times as fast in a batch",
    ),
    "a queue": ({}, {"most_tokens": 4096}, 4096, ""),
    # The first size is halved while that makes it quicker.
    "very slow": ({"duration_s": lambda tokens: 1.5 * tokens / FIRST_TOKENS}, {}, FIRST_TOKENS // 4, "takes 0.75 s"),
    "slow to measure": ({"duration_s": lambda tokens: 0.49}, {"most_tokens": 2**20}, 2**17, "took more than 20 s"),
    "slow whatever the size": ({"duration_s": lambda tokens: 3.0 + tokens / 1000}, {}, FIRST_TOKENS, ""),
    # By fragments, or another program: what was counted said that there was room.
    "broken while it grows": ({"broken": 1500}, {}, 1024, ""),
    "broken at first": ({"broken": 300}, {}, 256, ""),
    "broken whatever the size": ({"broken": 10}, {}, FEWEST_TOKENS, ""),
}


@pytest.mark.parametrize(("card", "options", "tokens", "said"), MEASURED.values(), ids=MEASURED)
def test_batches_grow_until_memory_time_or_gain_say_stop_and_what_a_failed_run_left_is_released(
    card: dict[str, Any], options: dict[str, Any], tokens: int, said: str
) -> None:
    measured = Card(**card)
    budget = measured.budget(**options)
    assert (budget.tokens, measured.released > 0) == (tokens, "broken" in card)
    assert said in budget.reason


def test_prompts_without_a_finite_answer_end_the_measurement_and_other_errors_are_not_hidden() -> None:
    card = Card()
    card.predictor.poison[1] = NonFiniteError("NaN in a logit")
    assert card.budget().tokens == UNMEASURED_TOKENS
    card.predictor.poison[1] = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access"):
        card.budget()


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("device", "fixed", "tokens", "reason"),
    [
        ("cpu", None, 512, "a CPU gains little from larger batches"),
        ("cuda", None, 2048, "would take more"),
        ("cuda", 20_000, 20_000, "as the setting batch_tokens says"),
    ],
)
async def test_a_server_measures_logs_and_lists_it(
    caplog: pytest.LogCaptureFixture, device: str, fixed: int | None, tokens: int, reason: str
) -> None:
    card = Card(free=10_000 * MIB)
    predictor = card.predictor
    predictor.device.type = device
    known = library(predictor)
    fake = Library(known.load, known.read, lambda one: card if one.device.type == "cuda" else None)
    app = create_app(settings(batch_tokens=fixed, max_artifact_bytes=1000), library=fake)
    with caplog.at_level("INFO", "laplora.service"):
        async with started(app) as client:
            (listed,) = (await client.get("/artifacts")).json()["artifacts"]
            assert app.state.backend.device.token_budget == tokens
            assert app.state.backend.backlog.most.tokens == max(65_536, 4 * tokens)
    assert listed["token_budget"]["tokens"] == tokens
    assert reason in listed["token_budget"]["reason"]
    (said,) = [r for r in caplog.records if getattr(r, "event", "") == "token_budget"]
    assert (said.artifact, said.tokens, said.reason) == ("fake", tokens, listed["token_budget"]["reason"])  # type: ignore[attr-defined]
    if device == "cuda" and fixed is None:
        assert predictor.threads == {"laplora-device"}


@pytest.mark.anyio
async def test_the_least_of_all_loaded_counts_and_another_base_is_measured_once_the_former_is_gone(
    tmp_path: Path,
) -> None:
    artifacts_in(tmp_path, "first", "second", "other")
    in_memory = weakref.WeakValueDictionary[str, FakePredictor]()

    @dataclass
    class Shared(Card):
        """Of which each base that is in memory takes a part."""

        def free_bytes(self) -> int:
            return self.free - 5_000 * MIB * len({one.base.model for one in in_memory.values()})

    def load(path: Path, *_: Any) -> FakePredictor:
        predictor = FakePredictor(path.name, path=path)
        predictor.device.type = "cuda"
        if path.name == "other":
            predictor.base = SimpleNamespace(model="other")
        in_memory[path.name] = predictor
        return predictor

    def card(one: Any) -> Card:
        return Shared(free=(10_000 if one.artifact.name == "second" else 15_000) * MIB, predictor=one)

    fake = Library(load, lambda path: FakePredictor(path.name, path=path).artifact, card)  # type: ignore[arg-type]
    app = create_app(settings(artifact="first", artifacts_root=tmp_path, max_artifact_bytes=2000), library=fake)
    async with started(app) as client:
        budgets = [app.state.backend.device.token_budget]
        for change in ("second/load", "second/unload", "other/activate"):
            assert (await changed(client, f"{change}")).status_code == 200
            budgets.append(app.state.backend.device.token_budget)
    assert set(in_memory) == {"other"}
    assert budgets == [2048, 1024, 2048, 2048]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_budget_of_a_real_device_fits_it(sentiment_run: Any) -> None:
    predictor = Predictor.load(sentiment_run.artifact, device="cuda")
    meter = CudaMeter(predictor.device)
    free = meter.free_bytes()
    budget = measure_budget(predictor, meter, lambda f: f(), most_tokens=65_536)
    assert budget.tokens >= FIRST_TOKENS, budget.reason
    rows = [EncodedRow((5,) * SHORT_ROW_TOKENS, 2)] * (budget.tokens // SHORT_ROW_TOKENS)
    assert 0 < meter.measure(lambda: predictor.predict(rows, "laplace")).peak_bytes <= MEMORY_SHARE * free
