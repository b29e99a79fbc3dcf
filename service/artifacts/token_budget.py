"""How many padded tokens a batch may have: measured on the device at load, by what batches take of memory and time.

Batches of the predictive that takes most memory grow, twice as large each time, until another doubling would take more
than its share of the free memory, one batch takes too long, or a token gets hardly any faster. A batch that runs out
of memory all the same is tried again in halves (``service.scoring.device``).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Protocol

from laplora.errors import NonFiniteError
from service.scoring.device_faults import is_out_of_memory
from service.scoring.model import SHORT_ROW_TOKENS, TokenBudget, counted_tokens

if TYPE_CHECKING:
    import torch

    from laplora.predictor import Predictor
    from laplora.prompts.rows import EncodedRow

#: Padded tokens of a batch on a CPU, which gains little from larger ones, and where a GPU could not be measured.
CPU_BATCH_TOKENS = 512
UNMEASURED_TOKENS = 2048
#: Padded tokens of the first batch that is measured, and the fewest where not even that fits.
FIRST_TOKENS, FEWEST_TOKENS = 512, 64
#: Most of the free memory that a batch may take. The rest is for fragments, and for other programs on the device.
MEMORY_SHARE = 0.8
#: Seconds that one batch may take: it cannot be interrupted, and everybody else waits for it.
BATCH_S = 0.5
#: How much faster a token must be in a batch twice as large: an answer of its own takes twice as long there.
WORTH = 1.05
#: A batch of half the size must take at most this share of the time: else tokens do not determine the time, and smaller
#: batches would only be more of them.
QUICKER = 0.75
#: Seconds of runs after which no larger batch is tried. Batches of requests that go between them do not count.
MEASURING_S = 20.0


@dataclass(frozen=True)
class Usage:
    """The cost of a run: its most bytes beyond those that were held before, and seconds."""

    peak_bytes: int
    duration_s: float


class DeviceMeter(Protocol):
    """Measures runs on a device. Called on the device's thread."""

    def free_bytes(self) -> int:
        """Return the bytes that a batch could take."""

    def measure(self, run: Callable[[], object]) -> Usage:
        """Run something and return what it took."""

    def release(self) -> None:
        """Give back what a failed run left in the allocator's cache."""


class CudaMeter:
    """Measures CUDA devices. Memory that torch's allocator holds unused counts as free.

    If a base is spread over several, the least free memory and the largest use of a batch count: batches always fit.
    """

    def __init__(self, *devices: torch.device) -> None:
        self._devices = devices

    def free_bytes(self) -> int:
        from laplora.models.shared_base import free_bytes

        free = [free_bytes(one) for one in self._devices]
        assert None not in free, "of CUDA it is known"
        return min(one for one in free if one is not None)

    def measure(self, run: Callable[[], object]) -> Usage:
        import torch

        for one in self._devices:
            torch.cuda.synchronize(one)
            torch.cuda.reset_peak_memory_stats(one)
        before, begun = [torch.cuda.memory_allocated(one) for one in self._devices], time.perf_counter()
        run()
        for one in self._devices:
            torch.cuda.synchronize(one)
        duration_s = time.perf_counter() - begun
        peaks = [torch.cuda.max_memory_allocated(one) for one in self._devices]
        return Usage(int(max(peak - was for peak, was in zip(peaks, before, strict=True))), duration_s)

    def release(self) -> None:
        import torch

        torch.cuda.empty_cache()


def meter_of(predictor: Predictor) -> DeviceMeter | None:
    """Return what measures a predictor's devices; None where nothing does."""
    return CudaMeter(*predictor.devices) if predictor.device.type == "cuda" else None


def measure_budget(
    predictor: Predictor,
    meter: DeviceMeter | None,
    on_device: Callable[[Callable[[], Any]], Any],
    *,
    most_tokens: int,
    reserved_bytes: int = 0,
) -> TokenBudget:
    """Return the token budget of a predictor that has answered already.

    Args:
        meter: of its device; None: nothing is measured.
        on_device: returns what a function returns on the device's thread, where requests' batches go between two calls.
        most_tokens: beyond which no batch could be filled.
        reserved_bytes: that further artifacts may take; of at most half of the free memory.

    Raises whatever a batch raises but out of memory, and whatever ``on_device`` raises by itself.
    """
    if meter is None:
        if predictor.device.type == "cpu":
            return TokenBudget(CPU_BATCH_TOKENS, "a CPU gains little from larger batches")
        return TokenBudget(UNMEASURED_TOKENS, "the device's memory is not measured")
    free = on_device(meter.free_bytes)
    usable = int(MEMORY_SHARE * (free - min(reserved_bytes, free // 2)))
    taken_s: list[float] = []

    def measured(run: Callable[[], object]) -> Usage:
        usage: Usage = on_device(partial(meter.measure, run))
        taken_s.append(usage.duration_s)
        return usage

    @cache
    def trial_of(tokens: int) -> Usage | None:
        trial = _trial(predictor, measured, tokens)
        if trial is None:
            on_device(meter.release)
        return trial

    try:
        return _grown(trial_of, usable, most_tokens, lambda: sum(taken_s))
    except NonFiniteError:
        return TokenBudget(UNMEASURED_TOKENS, "the measurement's prompts have no finite answer")


def _grown(
    trial_of: Callable[[int], Usage | None], usable: int, most_tokens: int, taken_s: Callable[[], float]
) -> TokenBudget:
    """Return the budget.

    Args:
        trial_of: returns None for a size that runs out of memory; taken_s: seconds of all runs so far.
    """
    tokens = min(FIRST_TOKENS, most_tokens)
    trial = trial_of(tokens)
    while (trial is None or trial.peak_bytes > usable or trial.duration_s > BATCH_S) and tokens > FEWEST_TOKENS:
        half = trial_of(tokens // 2)
        fits = trial is not None and trial.peak_bytes <= usable
        if trial is not None and fits and half is not None and half.duration_s > QUICKER * trial.duration_s:
            break
        tokens, trial = tokens // 2, half
    if trial is None or trial.peak_bytes > usable:
        return TokenBudget(
            tokens, f"larger batches than {tokens} tokens do not fit the {_gib(usable)} that may be used"
        )
    while (why := _too_much(trial, 2 * tokens, usable, most_tokens, taken_s())) is None:
        twice = trial_of(2 * tokens)
        why = _not_worth(trial, twice, 2 * tokens, usable)
        if why is not None or twice is None:
            break
        tokens, trial = 2 * tokens, twice
    took = f"one of {tokens} takes {_gib(trial.peak_bytes)} and {trial.duration_s:.2f} s"
    return TokenBudget(tokens, f"{why}; {took}")


def _too_much(trial: Usage, tokens: int, usable: int, most_tokens: int, taken_s: float) -> str | None:
    """Return why a batch of so many tokens, twice those of the trial, is not tried; None: it is."""
    if tokens > most_tokens:
        return "the queue does not hold a larger batch"
    if 2 * trial.peak_bytes > usable:
        return f"a batch of {tokens} tokens would take more than the {_gib(usable)} that may be used"
    if taken_s > MEASURING_S:
        return f"the runs of the measurement took more than {MEASURING_S:g} s"
    return None


def _not_worth(trial: Usage, twice: Usage | None, tokens: int, usable: int) -> str | None:
    """Return why a batch of so many tokens, which was tried, is too large; None: it is not."""
    if twice is None or twice.peak_bytes > usable:
        return f"a batch of {tokens} tokens takes more than the {_gib(usable)} that may be used"
    if twice.duration_s > BATCH_S:
        return f"a batch of {tokens} tokens takes {twice.duration_s:.2f} s, more than {BATCH_S:g}"
    faster = 2 * trial.duration_s / twice.duration_s
    return f"a token is {faster:.2f} times as fast in a batch of {tokens}" if faster < WORTH else None


def _trial(predictor: Predictor, measured: Callable[[Callable[[], object]], Usage], tokens: int) -> Usage | None:
    """Return what batches of a size take, the larger of short and of long rows; None where one runs out of memory."""
    usages = []
    try:
        for rows in _batches(predictor, tokens):
            runs = [partial(predictor.predict, rows, name) for name in _different(predictor)]
            peaks = [measured(run).peak_bytes for run in runs]
            # Once more: the first run of a size is slower, as kernels are chosen and the allocator asks the device.
            usages.append(measured(runs[peaks.index(max(peaks))]))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    return Usage(max(one.peak_bytes for one in usages), max(one.duration_s for one in usages))


def _different(predictor: Predictor) -> list[str]:
    """Return a predictive of each set of passes: forward alone, with gradients, and those that heads read."""
    from laplora.predictive.kinds import has_jacobians

    passes = {(has_jacobians(n), frozenset(predictor.experts.sources([n]))): n for n in predictor.predictives}
    return list(passes.values())


def _batches(predictor: Predictor, tokens: int) -> Iterator[list[EncodedRow]]:
    """Yield a batch of short and one of long rows of a plain prompt, each of about so many padded tokens."""
    for length in dict.fromkeys(min(length, predictor.max_tokens, tokens) for length in (SHORT_ROW_TOKENS, tokens)):
        row = predictor.sample_row(length)
        yield [row] * max(1, tokens // counted_tokens(predictor, row))


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.2f} GiB"
