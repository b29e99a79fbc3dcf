"""The clients' view: latencies, answers by status, and whatever should not have been."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

#: Most faults that are kept in words.
_KEPT = 50


def quantile(values: Sequence[float], share: float) -> float:
    """Return a quantile; not a number of nothing."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


@dataclass
class Tally:
    """Counts of a run.

    Attributes:
        latencies_s: of the answered predictions, seconds; ``rows``: theirs.
        errors: refusals and failures by code; ``expected``: those that were asked for.
        done: by kind, what came to its end as it should.
        wrong: answers that were not what is known of their rows.
        faults: what should not have been, in words, the first of them; never text of a prompt.
    """

    latencies_s: list[float] = field(default_factory=list)
    rows: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    expected: Counter[str] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    faults: list[str] = field(default_factory=list)
    fault_count: int = 0

    def predicted(self, latency_s: float, rows: int, wrong: int) -> None:
        """Count an answered request of ``rows`` inputs."""
        self.latencies_s.append(latency_s)
        self.rows += rows
        self.wrong += wrong
        self.done["predict"] += 1
        if wrong:
            self.fault(f"{wrong} of {rows} answers are not what is known of their rows")

    def fault(self, what: str) -> None:
        """Note what should not have been."""
        self.fault_count += 1
        if len(self.faults) < _KEPT:
            self.faults.append(what)
