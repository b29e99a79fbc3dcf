"""The contexts that token sequences are read in: their distinct prefixes, and the runs that show each one once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from laplora.prompts.rows import Batch

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


def run_batch(tree: PrefixTree, batch: Batch) -> Batch:
    """Return the runs of every row, those of a row after each other: (batch * runs, tokens + extra tokens).

    The run's tokens follow the prompt on the right; a shorter run is padded there.
    """
    assert batch.position_ids is not None, "rows are padded on the left"
    rows, runs, extra, device = len(batch), len(tree.runs), tree.extra_tokens, batch.input_ids.device
    tokens = torch.tensor([[*run, *[0] * (extra - len(run))] for run in tree.runs], dtype=torch.int64, device=device)
    lengths = torch.tensor([len(run) for run in tree.runs], device=device)
    places = torch.arange(extra, device=device)

    def joined(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.cat([left[:, None].expand(-1, runs, -1), right.expand(rows, runs, extra)], 2).flatten(0, 1)

    return Batch(
        input_ids=joined(batch.input_ids, tokens),
        attention_mask=joined(batch.attention_mask, (places < lengths[:, None]).long()),
        position_ids=joined(batch.position_ids, batch.position_ids[:, None, -1:] + 1 + places),
        class_mask=batch.class_mask.repeat_interleave(runs, 0),
    )


def context_places(tree: PrefixTree) -> tuple[list[int], list[int]]:
    """Return where each context ends: its run, and the tokens of the run after the prompt up to there."""
    runs = [next(r for r, run in enumerate(tree.runs) if run[: len(c)] == c) for c in tree.contexts]
    return runs, [len(context) for context in tree.contexts]
