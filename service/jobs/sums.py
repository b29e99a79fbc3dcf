"""Accuracy, NLL and ECE of the rows so far, from sums that grow with each chunk and can be kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import BaseModel

from service.scoring.evaluation import MethodRow, padded_probs


class MethodSums(BaseModel):
    """One method's sums over rows; by confidence bin where lists."""

    hits: float = 0.0
    nll: float = 0.0
    counts: list[int]
    confidences: list[float]
    bin_hits: list[float]


class Sums(BaseModel):
    """Sums over the first rows of a job, by method."""

    rows: int = 0
    methods: dict[str, MethodSums] = {}

    def plus(
        self, rows: Sequence[Mapping[str, MethodRow]], labels: Sequence[int], *, class_count: int, bins: int
    ) -> Sums:
        """Return the sums with more rows in them.

        Raises:
            NonFiniteError: a probability that is not finite.
        """
        import torch

        from laplora.metrics.scores import reliability_bins, row_nll

        truth = torch.tensor(labels)
        methods = {}
        for name in rows[0]:
            probs = padded_probs([row[name][0] for row in rows], class_count)
            found = reliability_bins(probs, truth, bins)
            counts = [b.count for b in found]
            bin_hits = [b.count * (b.accuracy or 0.0) for b in found]
            confidences = [b.count * (b.confidence or 0.0) for b in found]
            before = self.methods.get(name) or MethodSums(
                counts=[0] * bins, confidences=[0] * bins, bin_hits=[0] * bins
            )
            methods[name] = MethodSums(
                hits=before.hits + sum(bin_hits),
                nll=before.nll + float(row_nll(probs, truth).sum()),
                counts=[a + b for a, b in zip(before.counts, counts, strict=True)],
                confidences=[a + b for a, b in zip(before.confidences, confidences, strict=True)],
                bin_hits=[a + b for a, b in zip(before.bin_hits, bin_hits, strict=True)],
            )
        return Sums(rows=self.rows + len(rows), methods=methods)

    def metrics(self) -> dict[str, dict[str, float]] | None:
        """Return accuracy, NLL (nats) and ECE by method, as of ``laplora.metrics.scores``; None without a row."""
        if self.rows == 0:
            return None
        return {
            name: {
                "accuracy": sums.hits / self.rows,
                "nll": sums.nll / self.rows,
                "ece": sum(abs(h - c) for h, c in zip(sums.bin_hits, sums.confidences, strict=True)) / self.rows,
            }
            for name, sums in self.methods.items()
        }
