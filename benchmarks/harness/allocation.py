"""Peak memory of a call: what torch's allocator hands out during it, above what was held before."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


def peak_bytes(function: Callable[[], Any], device: str = "cpu") -> int:
    """Return the most bytes of tensors that a call holds at a time beyond those that were there before it.

    Exact. On a CPU it is the running total of the allocator's own events, which the profiler keeps: what libraries
    allocate by themselves (scratch of matrix products) is not among them, nor rounding up to pages.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        held = function()  # what it returns is its memory too, until here
    del held
    events: Any = profiler.profiler
    memory = [e for e in events.kineto_results.events() if e.name() == "[memory]" and e.device_type() == DeviceType.CPU]
    memory.sort(key=lambda e: e.start_ns())  # stable: events of one nanosecond stay in order
    return max(accumulate((e.nbytes() for e in memory), initial=0))
