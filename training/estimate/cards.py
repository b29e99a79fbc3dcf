"""Cards by what their makers say of them."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Card:
    """One card.

    Attributes:
        memory_bytes: of the whole card.
        products_per_s: multiplications and additions a second of dense bfloat16 products summed in float32.
        bytes_per_s: between its memory and its processors.
    """

    name: str
    memory_bytes: int
    products_per_s: float
    bytes_per_s: float


#: One card of each size that is common: data sheets of NVIDIA (Ada GPU architecture, appendix A; A100 40 GB PCIe; H100
#: 80 GB SXM).
CARDS = (
    Card("RTX 4090, 24 GB", 24 * GIB, 165.2e12, 1.008e12),
    Card("A100, 40 GB", 40 * GIB, 312e12, 1.555e12),
    Card("H100, 80 GB", 80 * GIB, 989.4e12, 3.35e12),
)
