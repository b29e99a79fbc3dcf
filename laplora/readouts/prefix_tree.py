"""The contexts that token sequences are read in: their distinct prefixes, and the runs that show every one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Tokens after the prompt.
Prefix = tuple[int, ...]


@dataclass(frozen=True)
class PrefixTree:
    """What a causal model must see to score sequences after a prompt: each without its last token.

    Attributes:
        contexts: the distinct prefixes, the empty one first; a sequence's token is read after the one before it.
        runs: the contexts that no other one continues. A run shows every context that it begins with, since a causal
            model's state at a token does not see what follows.
        steps: by context, the tokens that some sequence has after it.
    """

    contexts: tuple[Prefix, ...]
    runs: tuple[Prefix, ...]
    steps: tuple[tuple[int, ...], ...]

    @property
    def extra_tokens(self) -> int:
        """Tokens that the longest run has after the prompt."""
        return max(map(len, self.runs))


def prefix_tree(sequences: Sequence[Prefix]) -> PrefixTree:
    """Return the contexts and runs of token sequences, each of one token or more."""
    steps: dict[Prefix, dict[int, None]] = {(): {}}
    for sequence in sequences:
        for place, token in enumerate(sequence):
            steps.setdefault(sequence[:place], {})[token] = None
    contexts = tuple(steps)
    runs = tuple(c for c in contexts if not any(o[: len(c)] == c and o != c for o in contexts))
    return PrefixTree(contexts, runs, tuple(tuple(tokens) for tokens in steps.values()))
