"""What the base without adapter says of each option of a question: its likelihood, and states at its tokens.

One pass runs a question once, with the tokens of all its options behind it. Each option sees the question and itself
alone, at the positions that it would have without the others (tree attention; Miao et al., arXiv 2305.09781). Models
that do not answer the same this way run every option with a copy of the question.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from laplora.classifier import Classifier, frozen
from laplora.errors import ConfigError, NonFiniteError
from laplora.features.layers import body_of, noted_layers
from laplora.models.readout import base_of, log_partition, logit_transform, output_head
from laplora.prompts.examples import Example
from laplora.prompts.options import OptionText, option_texts
from laplora.prompts.rows import Batch, EncodedRow
from laplora.readouts.contexts import shares_prompt

#: Columns of the block ``scores``, nats: the log likelihood of the scored text given the question, and how much the
#: question adds to it (pointwise mutual information; Holtzman et al., arXiv 2104.08315); each also by its length.
SCORES = ("sum", "per_token", "per_character", "added", "added_per_token", "added_per_character")
#: Tokens of a question with all its options that one pass runs: what each sees of the others is a square of these.
_MOST_TOKENS = 1024


@dataclass(frozen=True)
class OptionFeatures:
    """Features of each question's options, on the CPU.

    Attributes:
        blocks: by name (rows, options, width) float32, zero where a question has no such option: ``scores``, of width
            ``len(SCORES)``; ``mean`` and ``last``, the mean over the scored tokens' states and the last one's, of each
            of ``feature_layers`` side by side. A block a layer predicted no better (docs/lab-notes.md).
        class_mask: (rows, options) bool.
    """

    blocks: dict[str, torch.Tensor]
    class_mask: torch.Tensor


def option_features(
    classifier: Classifier,
    examples: Sequence[Example],
    batch_size: int,
    *,
    track: Callable[[Sequence[list[int]]], Iterator[list[int]]] = iter,
) -> OptionFeatures:
    """Return the features of examples, in order. They do not depend on the order of a question's options.

    Args:
        examples: their fields have ``choices``; labels are not read.
        batch_size: questions of a pass.
        track: of ``Classifier.over_batches``, as a bar of progress; of the first of two passes.

    Raises:
        ConfigError: a template whose options cannot be told apart (``laplora.prompts.options``), or a model that
            is no causal language model.
        InvalidInputError: an input that the template does not take.
        NonFiniteError: features with NaN or infinity.
    """
    if output_head(classifier.model) is None:
        raise ConfigError(
            f"features of options need a causal language model, got {type(base_of(classifier.model)).__name__}"
        )
    texts, places = list[list[OptionText]](), list[tuple[int, int]]()
    for row, example in enumerate(examples):
        given = option_texts(classifier.template, example.fields, classifier.labels)
        # Always in the order of their texts, so that rounding does not depend on the user's order either.
        order = sorted(range(len(given)), key=lambda option: example.fields["choices"][option])
        texts.append([given[option] for option in order])
        places += [(row, option) for option in order]
    encoded = [
        [encode_question(classifier.tokenizer, t, classifier.max_tokens, with_question=w) for t in texts]
        for w in (True, False)
    ]
    with frozen(classifier.model):
        asked = _passes(classifier, encoded[0], batch_size, True, track)
        alone = _passes(classifier, encoded[1], batch_size, False, iter)["sum"]
    tokens = torch.tensor([count for q in encoded[0] for count in q.scored])
    characters = torch.tensor([len(t.scored.strip()) or 1 for of_row in texts for t in of_row])
    summed = asked.pop("sum")
    asked["scores"] = torch.stack([s / by for s in (summed, summed - alone) for by in (1, tokens, characters)], 1)
    rows, options = torch.tensor(places).T
    blocks = {}
    for name, values in asked.items():
        if not values.isfinite().all():
            raise NonFiniteError(f"the base's {name} of options hold NaN or infinity: load it in bfloat16 or float32")
        blocks[name] = torch.zeros(len(examples), classifier.class_count, values.shape[1])
        blocks[name][rows, options] = values.float()
    counts = torch.tensor([len(of_row) for of_row in texts])
    return OptionFeatures(blocks, torch.arange(classifier.class_count) < counts[:, None])


@dataclass(frozen=True)
class Question:
    """The tokens of a question's options.

    Attributes:
        begins: tokens that all options' texts begin with.
        ends: by option the tokens after these, at least one.
        scored: by option how many of its last tokens are scored, from 1 on.
    """

    begins: tuple[int, ...]
    ends: tuple[tuple[int, ...], ...]
    scored: tuple[int, ...]

    @property
    def row(self) -> EncodedRow:
        """All tokens, one option's after another's."""
        return EncodedRow((*self.begins, *(token for end in self.ends for token in end)), len(self.ends))

    def parted(self) -> list[Question]:
        """Return each option as a question of its own."""
        return [Question(self.begins, (end,), (count,)) for end, count in zip(self.ends, self.scored, strict=True)]


def encode_question(
    tokenizer: Any, texts: Sequence[OptionText], max_tokens: int, *, with_question: bool = True
) -> Question:
    """Return a question's tokens: of each option those of its whole text.

    A token that holds characters of both the scored text and what is before it counts as scored. Where no text stands
    before an option, and the tokenizer puts no token of its own there, the one that texts start or end with does. A
    text that is too long loses tokens of its beginning, and then of the option's end.

    Args:
        with_question: whether ``OptionText.question`` stands before the option, or ``OptionText.alone``.
    """
    before = [(one.question if with_question else one.alone) for one in texts]
    given = [start + one.filled for start, one in zip(before, texts, strict=True)]
    encoded = tokenizer(
        [text + one.scored for text, one in zip(given, texts, strict=True)], return_offsets_mapping=True
    )
    rows, first = list[list[int]](), list[int]()
    for text, tokens, offsets in zip(given, encoded["input_ids"], encoded["offset_mapping"], strict=True):
        # A special token behind the text ends at no character, as one before it does.
        scored = [place for place, (_, end) in enumerate(offsets) if end > len(text)] or [len(tokens) - 1]
        rows.append(tokens[: scored[-1] + 1])
        first.append(scored[0])
    if min(first) == 0 or (not before[0] and encoded["offset_mapping"][0][0][1] > 0):
        ids = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
        start = next(token for token in ids if token is not None)
        rows, first = [[start, *row] for row in rows], [place + 1 for place in first]
    differs = (place for place, tokens in enumerate(zip(*rows, strict=False)) if len(set(tokens)) > 1)
    shared = min(next(differs, min(map(len, rows))), *first)
    cut = max(0, min(shared - 1, max(map(len, rows)) - max_tokens))
    begins = (*rows[0][: min(1, shared)], *rows[0][1 + cut : shared])
    ends = [tuple(row[shared : shared + max_tokens - len(begins)]) for row in rows]
    scored = [max(1, len(end) - (place - shared)) for end, place in zip(ends, first, strict=True)]
    return Question(begins, tuple(ends), tuple(scored))


def _passes(
    classifier: Classifier,
    questions: Sequence[Question],
    batch_size: int,
    with_states: bool,
    track: Callable[[Sequence[list[int]]], Iterator[list[int]]],
) -> dict[str, torch.Tensor]:
    """Return by name (all options, width), and ``sum`` (all options,), one question's options after another's."""
    model = classifier.model
    longest = max(len(q.begins) + max(map(len, q.ends)) for q in questions)
    sharing = max(len(q.row.token_ids) for q in questions) <= _MOST_TOKENS and shares_prompt(model, longest)
    units = list(questions) if sharing else [one for q in questions for one in q.parted()]
    counts = [len(unit.ends) for unit in units]

    def passed(batch: Batch, index: list[int]) -> dict[str, torch.Tensor]:
        return _passed(model, [units[i] for i in index], batch, sharing, with_states)

    size = batch_size if sharing else batch_size * max(map(len, (q.ends for q in questions)))
    parts, order = classifier.over_rows([unit.row for unit in units], size, passed, track)
    by_batch = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    # The order is of questions, each with its own number of options.
    in_batches = [0] * len(order)
    for unit, place in enumerate(order.tolist()):
        in_batches[place] = counts[unit]
    ends = torch.tensor(in_batches).cumsum(0).tolist()
    flat = torch.tensor([at for u, p in enumerate(order.tolist()) for at in range(ends[p] - counts[u], ends[p])])
    return {name: values[flat] for name, values in by_batch.items()}


@dataclass(frozen=True)
class _Places:
    """Where a batch's tokens are: of its options, one after another, and of the batch as one row of tokens.

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
            start = (row + 1) * total - len(question.row.token_ids) + count
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
    own, total = option_of[:, :, None] == option_of[:, None, :], option_of.shape[1]
    before = torch.ones(total, total, dtype=torch.bool, device=option_of.device).tril()
    allowed = before & (own | (option_of == 0)[:, None, :]) & (option_of >= 0)[:, None, :]
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
