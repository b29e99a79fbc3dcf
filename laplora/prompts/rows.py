"""Prompts as token ids, and batches of them.

Decoders are padded and cut on the left: their logits are read at the last token. Encoders are padded and cut on the
right: they count positions from the start, and many read their first token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from laplora.errors import InvalidInputError, TooManyTokensError
from laplora.prompts.option_tokens import OptionTokens
from laplora.prompts.token_bounds import UNBOUNDED, TokenBounds

#: Least that a row may be limited to, in tokens.
FEWEST_TOKENS = 8
#: Most labels of a task: an answer has a covariance of each two.
MAX_LABELS = 4096
#: The side of a row that is padded, and of a text that is cut.
Side = Literal["left", "right"]


@dataclass(frozen=True)
class EncodedRow:
    """One tokenised prompt.

    Attributes:
        token_ids: without padding.
        class_count: how many of the artifact's labels, from the first, are possible answers.
        truncated: whether tokens were cut.
        roles: of each token (``laplora.prompts.token_roles``); as what follows empty where no features need them.
        encoder_ids: tokens of its text for the sentence encoder, special ones included.
        options: tokens of the question's options.
        model_log_probs: of another model that answered it, by class, nats; empty without one.
    """

    token_ids: tuple[int, ...]
    class_count: int
    truncated: bool = False
    roles: tuple[int, ...] = ()
    encoder_ids: tuple[int, ...] = ()
    options: OptionTokens | None = None
    model_log_probs: tuple[float, ...] = ()


@dataclass(frozen=True)
class Batch:
    """Padded rows.

    Attributes:
        input_ids: (batch, tokens) int64.
        attention_mask: (batch, tokens) int64, 1 at real tokens.
        position_ids: (batch, tokens) int64, 0 at each row's first real token; None where rows are padded on the right,
            and the model counts them itself.
        class_mask: (batch, classes) bool, true where the class is a possible answer.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor | None
    class_mask: torch.Tensor

    @property
    def inputs(self) -> dict[str, torch.Tensor]:
        """The arguments of a model's forward pass."""
        return {name: tensor for name, tensor in vars(self).items() if name != "class_mask" and tensor is not None}

    def to(self, device: torch.device | str) -> Batch:
        positions = None if self.position_ids is None else self.position_ids.to(device)
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), positions, self.class_mask.to(device))

    def __len__(self) -> int:
        return self.input_ids.shape[0]


def encode(
    tokenizer: Any,
    prompt: str,
    class_count: int,
    *,
    max_tokens: int,
    truncate: bool,
    bounds: TokenBounds = UNBOUNDED,
    side: Side = "left",
) -> EncodedRow:
    """Return one prompt as token ids, with the tokenizer's special tokens.

    Args:
        max_tokens: limit in tokens, special tokens included.
        truncate: whether to cut a longer prompt; a special token at the end that is cut is kept.
        bounds: of the tokenizer, by which text that is certain to be cut or refused is not tokenised.
        side: that is cut.

    Raises:
        TooManyTokensError: too long, with ``truncate`` off; ``got`` is a lower bound where text was not tokenised.
    """
    fewest = 1 if len(prompt) <= max_tokens else bounds.fewest(len(prompt.encode()))
    certain = fewest > max_tokens
    ids = [] if certain else tokenizer.encode(prompt)
    got = fewest if certain else len(ids)
    if not got:
        raise InvalidInputError("the prompt has no tokens")
    if got <= max_tokens:
        return EncodedRow(tuple(ids), class_count)
    if not truncate:
        count = f"at least {got}" if certain else got
        raise TooManyTokensError(
            f"the prompt has {count} tokens, the limit is {max_tokens}: shorten it or set truncate",
            limit=max_tokens,
            got=got,
        )
    if side == "right":
        ids = tokenizer.encode(bounds.start(prompt, max_tokens)) if certain else ids
        added = tokenizer.encode("a")[-1:]  # of the text itself the last token may be a special one's name
        kept = added if added[0] in tokenizer.all_special_ids else []
        return EncodedRow(tuple(ids[: max_tokens - len(kept)] + kept), class_count, truncated=True)
    if certain:
        # A special token is recognised by its name alone: the longest name's length is enough to see the first one.
        head = tokenizer.encode(prompt[: bounds.longest_special])[:1]
        ids = head + tokenizer.encode(bounds.tail(prompt, max_tokens))
    kept = ids[:1] if ids[0] in tokenizer.all_special_ids else []
    return EncodedRow(tuple(kept + ids[len(ids) - max_tokens + len(kept) :]), class_count, truncated=True)


def collate(rows: Sequence[EncodedRow], *, class_count: int, pad_token_id: int, side: Side = "left") -> Batch:
    """Return rows as one batch on the CPU, in the order given, padded on one side."""
    longest = max(len(r.token_ids) for r in rows)
    input_ids = torch.full((len(rows), longest), pad_token_id, dtype=torch.int64)
    mask = torch.zeros((len(rows), longest), dtype=torch.int64)
    for i, row in enumerate(rows):
        count = len(row.token_ids)
        real = slice(longest - count, longest) if side == "left" else slice(count)
        input_ids[i, real] = torch.tensor(row.token_ids)
        mask[i, real] = 1
    counts = torch.tensor([r.class_count for r in rows])
    return Batch(
        input_ids=input_ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp_min(0) if side == "left" else None,
        class_mask=torch.arange(class_count)[None, :] < counts[:, None],
    )
