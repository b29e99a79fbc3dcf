"""Features of each option of a question under the base without adapter: its likelihood, and states at its tokens.

One pass runs a question once, with the tokens of all its options behind it. Each option sees the question and itself
alone, at the positions that it would have without the others (tree attention; Miao et al., arXiv 2305.09781). Models
that do not answer the same this way run every option with a copy of the question.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from laplora.features.layers import body_of, noted_layers
from laplora.models.readout import base_of, log_partition, logit_transform, output_head
from laplora.models.spread import input_device
from laplora.prompts.option_tokens import OptionTokens, Question
from laplora.prompts.rows import Batch, EncodedRow, collate
from laplora.readouts.contexts import shares_prompt

#: Columns of the block ``scores``, nats: the log likelihood of the scored text given the question, and how much the
#: question adds to it (pointwise mutual information; Holtzman et al., arXiv 2104.08315); each also by its length.
SCORES = ("sum", "per_token", "per_character", "added", "added_per_token", "added_per_character")
#: Tokens of a question with all its options that one pass runs: what each sees of the others is a square of these.
_MOST_TOKENS = 1024


def option_blocks(
    model: Any, rows: Sequence[OptionTokens], *, class_count: int, pad_token_id: int
) -> dict[str, torch.Tensor]:
    """Return the features of a batch of questions, by the base that runs now, on the CPU.

    Blocks are by name (rows, options, width) float32, zero where a question has no such option: ``scores``, of width
    ``len(SCORES)``; ``mean`` and ``last``, the mean over the scored tokens' states and the last one's, of each of
    ``feature_layers`` side by side.

    Args:
        model: a causal language model.
    """
    full = _pass(model, [row.with_question for row in rows], pad_token_id, True)
    alone = _pass(model, [row.alone for row in rows], pad_token_id, False)["sum"]
    tokens = torch.tensor([count for row in rows for count in row.with_question.scored])
    characters = torch.tensor([count for row in rows for count in row.characters])
    summed = full.pop("sum")
    full["scores"] = torch.stack([s / by for s in (summed, summed - alone) for by in (1, tokens, characters)], 1)
    numbers, places = torch.tensor([(number, place) for number, row in enumerate(rows) for place in row.places]).T
    blocks = {name: torch.zeros(len(rows), class_count, values.shape[1]) for name, values in full.items()}
    for name, values in full.items():
        blocks[name][numbers, places] = values.float()
    return blocks


def _pass(model: Any, questions: Sequence[Question], pad_token_id: int, with_states: bool) -> dict[str, torch.Tensor]:
    """Return by name (all options, width), and ``sum`` (all options,), one question's options after another's."""
    longest = max(len(q.begins) + max(map(len, q.ends)) for q in questions)
    sharing = max(len(q.token_ids) for q in questions) <= _MOST_TOKENS and shares_prompt(model, longest)
    units = list(questions) if sharing else [one for q in questions for one in q.parted()]
    batch = collate([EncodedRow(unit.token_ids, 1) for unit in units], class_count=1, pad_token_id=pad_token_id)
    return _passed(model, units, batch.to(input_device(base_of(model))), sharing, with_states)


@dataclass(frozen=True)
class _Places:
    """Positions of a batch's tokens: of its options, one after another, and of the batch as one row of tokens.

    Attributes:
        option_of, positions: (batch, tokens) int64, -1 at padding, 0 in the beginning, then 1 for the first option and
            so on; and as if each option were alone.
        scored, before: (options, most scored) int64, places of the scored tokens and of those before each. Fewer tokens
            repeat the last one.
        real: (options, most scored) bool, false where it repeats.
    """

    option_of: torch.Tensor
    positions: torch.Tensor
    scored: torch.Tensor
    before: torch.Tensor
    real: torch.Tensor

    @classmethod
    def of(cls, questions: Sequence[Question], batch: Batch) -> _Places:
        total, option_of = batch.input_ids.shape[1], torch.full(batch.input_ids.shape, -1)
        positions = torch.zeros_like(option_of)
        flat, at, runs = option_of.view(-1), positions.view(-1), list[list[int]]()
        for row, question in enumerate(questions):
            count = len(question.begins)
            start = (row + 1) * total - len(question.token_ids) + count
            flat[start - count : start], at[start - count : start] = 0, torch.arange(count)
            last = start - 1
            for number, (end, scored) in enumerate(zip(question.ends, question.scored, strict=True), start=1):
                stop = start + len(end)
                flat[start:stop], at[start:stop] = number, torch.arange(count, count + len(end))
                runs.append([last, *range(start, stop)][-scored - 1 :])
                start = stop
        most = max(map(len, runs)) - 1
        places = torch.tensor([run + run[-1:] * (most + 1 - len(run)) for run in runs])
        real = torch.arange(most) < torch.tensor([len(run) - 1 for run in runs])[:, None]
        return cls(option_of, positions, places[:, 1:], places[:, :-1], real)


def _passed(
    model: Any, questions: Sequence[Question], batch: Batch, sharing: bool, with_states: bool
) -> dict[str, torch.Tensor]:
    """Return what one pass says of a batch's options, on the CPU."""
    places, device, body = _Places.of(questions, batch), batch.input_ids.device, body_of(model)
    means, lasts = list[torch.Tensor](), list[torch.Tensor]()

    def note(_number: int, states: torch.Tensor) -> None:
        real = places.real.to(states.device)[:, :, None]
        states = states.flatten(0, 1)[places.scored.to(states.device)]
        means.append(((states * real).sum(1) / real.sum(1)).cpu())
        lasts.append(states[:, -1].cpu())

    mask = batch.attention_mask
    if sharing:
        mask = _sees(places.option_of.to(device), body.get_input_embeddings().weight.dtype)
    with noted_layers(model, note) if with_states else nullcontext():
        hidden = body(
            input_ids=batch.input_ids, attention_mask=mask, position_ids=places.positions.to(device), use_cache=False
        ).last_hidden_state.to(device)
    real = places.real.to(device)
    tokens, before = (where.to(device)[real] for where in (places.scored, places.before))
    steps = torch.zeros(real.shape, dtype=torch.promote_types(hidden.dtype, torch.float32), device=device)
    steps[real] = _log_probs(model, hidden.flatten(0, 1)[before], batch.input_ids.flatten()[tokens])
    states = {"mean": torch.cat(means, 1), "last": torch.cat(lasts, 1)} if with_states else {}
    return states | {"sum": steps.sum(1).cpu()}


def _sees(option_of: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return what is added to attention's scores, (batch, 1, tokens, tokens): 0, or the least number if unseen."""
    same_option, total = option_of[:, :, None] == option_of[:, None, :], option_of.shape[1]
    before = torch.ones(total, total, dtype=torch.bool, device=option_of.device).tril()
    allowed = before & (same_option | (option_of == 0)[:, None, :]) & (option_of >= 0)[:, None, :]
    # A pad token sees itself: a row of the softmax without any key would be NaN. Nothing sees the pad token.
    allowed |= torch.eye(total, dtype=torch.bool, device=option_of.device)
    bias = torch.zeros(allowed.shape, dtype=dtype, device=option_of.device)
    return bias.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


def _log_probs(model: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the log probability of a token after each state, (states,) nats, of final states (states, hidden)."""
    head = output_head(model)
    layer = getattr(head, "base_layer", head)
    wide = hidden.to(layer.weight.device, torch.promote_types(torch.float32, hidden.dtype))
    tokens = targets.to(wide.device)
    logits = (wide * layer.weight[tokens].to(wide)).sum(1)
    if layer.bias is not None:
        logits = logits + layer.bias[tokens].to(wide)
    return logit_transform(model).apply(logits).to(hidden.device) - log_partition(model, hidden)
