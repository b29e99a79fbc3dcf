"""The message to the process with the weights: encoded rows, the artifact's digest, and the options.

Plain values: a ticket can be pickled, and holds no weights, no lock and no future. So the same one goes to the device
of this process or to another machine's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from laplora.prompts.rows import EncodedRow


@dataclass(frozen=True)
class Ask:
    """The options of a request's rows: all rows of a batch have the same.

    Attributes:
        predictive: the one that answers; ``also``: those whose probabilities are wanted beside the answer.
        covariance: whether the logits' covariance is wanted, classes x classes numbers a row.
    """

    predictive: str
    also: tuple[str, ...] = ()
    covariance: bool = False


@dataclass(frozen=True)
class Ticket:
    """The rows of one request, for the artifact of a digest.

    Attributes:
        digest: of the artifact, which names its content on every machine.
        rows: one an input, in their order.
        ask: what is wanted of them.
        caller: name of who asks; a caller's tickets share its part of a queue.
        left_s: seconds in which an answer is of use, from when the ticket is sent: clocks of two machines differ.
    """

    digest: str
    rows: tuple[EncodedRow, ...]
    ask: Ask
    caller: str
    left_s: float = math.inf

    @property
    def tokens(self) -> int:
        """Tokens of all rows, without padding."""
        return sum(len(row.token_ids) for row in self.rows)
