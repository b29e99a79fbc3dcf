"""The contexts that token sequences are read in: their distinct prefixes, and the runs that show every one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

#: Tokens after the prompt.
Prefix = tuple[int, ...]


@dataclass(frozen=True)
class PrefixTree:
    """The tokens that a causal model must see to score sequences after a prompt: each without its last token.

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

    @cached_property
    def shown_in(self) -> tuple[int, ...]:
        """By context the first run that begins with it."""
        first: dict[Prefix, int] = {}
        for number, run in enumerate(self.runs):
            for length in range(len(run) + 1):
                first.setdefault(run[:length], number)
        return tuple(first[context] for context in self.contexts)

    @cached_property
    def begins(self) -> torch.Tensor:
        """(contexts - 1, contexts - 1) bool, of all but the empty one: whether the row's begins with the column's."""
        after = self.contexts[1:]
        number = {context: place for place, context in enumerate(after)}
        result = torch.zeros(len(after), len(after), dtype=torch.bool)
        for place, context in enumerate(after):
            result[place, [number[context[: length + 1]] for length in range(len(context))]] = True
        return result


def prefix_tree(sequences: Sequence[Prefix]) -> PrefixTree:
    """Return the contexts and runs of token sequences, each of one token or more."""
    steps: dict[Prefix, dict[int, None]] = {(): {}}
    for sequence in sequences:
        for place, token in enumerate(sequence):
            steps.setdefault(sequence[:place], {})[token] = None
    contexts = tuple(steps)
    continued = {context[:length] for context in contexts for length in range(len(context))}
    runs = tuple(context for context in contexts if context not in continued)
    return PrefixTree(contexts, runs, tuple(tuple(tokens) for tokens in steps.values()))
