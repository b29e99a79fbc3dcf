"""A causal model's states at every context of a prefix tree, for a batch of prompts.

If the model takes an attention mask by query and key, the prompt runs once. The tokens of every context follow it, and
each sees the prompt and its own context alone (tree attention; Miao et al., arXiv 2305.09781). Else every run of the
tree goes through the model with a copy of the prompt.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from laplora.models.beginning import narrow_window
from laplora.models.probe import REFUSALS, is_of_the_device, probe_batch
from laplora.models.readout import base_of
from laplora.prompts.rows import Batch
from laplora.readouts.prefix_tree import PrefixTree, prefix_tree

#: How far the states of the two ways may be apart, as a share of their norm, by rounding; in float32 0.1 %.
_TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.1}
#: By base model: whether it was measured that the prompt can be shared.
_MEASURED: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def context_states(model: Any, tree: PrefixTree, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the final hidden states (batch, contexts, hidden), and the mask (batch * runs, tokens) of what ran.

    Args:
        batch: padded on the left. The model's limit of positions is on the prompt and a label together.
    """
    if len(tree.runs) > 1 and shares_prompt(model, batch.input_ids.shape[1] + tree.extra_tokens):
        return _sharing(model, tree, batch)
    return _repeating(model, tree, batch)


def context_tokens(model: Any, tree: PrefixTree, tokens: int) -> int:
    """Return how many tokens the model runs on for a prompt of so many, as ``context_states`` runs it."""
    if len(tree.runs) > 1 and shares_prompt(model, tokens + tree.extra_tokens):
        return tokens + len(tree.contexts) - 1
    return len(tree.runs) * (tokens + tree.extra_tokens)


def shares_prompt(model: Any, tokens: int) -> bool:
    """Return whether a model gives the states of separate runs of up to ``tokens`` where these share a prompt.

    It is measured at the first call. A window of attention that is shorter than a run would be lost.

    Raises:
        RuntimeError: the device failed, or has no memory left.
    """
    base = base_of(model)
    settings = base.config.get_text_config()
    if narrow_window(settings, tokens):
        return False
    if base not in _MEASURED:
        _MEASURED[base] = settings._attn_implementation in ("sdpa", "eager") and _same(model)
    return _MEASURED[base]


def _same(model: Any) -> bool:
    batch = probe_batch(model)
    a, b, c = batch.input_ids[0, :3].tolist()
    tree = prefix_tree(((a, b, c), (a, c, b), (b, b)))  # contexts side by side, and one after the other
    with torch.no_grad(), _undisturbed(base_of(model)):
        expected = _repeating(model, tree, batch)[0]
        try:
            states = _sharing(model, tree, batch)[0]
        except (*REFUSALS, RuntimeError) as error:
            if is_of_the_device(error):
                raise
            return False
    gap = (states - expected).double().norm(dim=-1) / expected.double().norm(dim=-1)
    return bool((gap <= _TOLERANCE.get(states.dtype, 1e-3)).all())


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Turn dropout off inside the block, and take hooks away: a tape of activations notes one forward pass."""
    modules: list[Any] = list(model.modules())
    before = [(module, module.training, module._forward_hooks) for module in modules]
    model.eval()
    for module in modules:
        module._forward_hooks = OrderedDict()
    try:
        yield
    finally:
        for module, training, hooks in before:
            module.training, module._forward_hooks = training, hooks


def _sharing(model: Any, tree: PrefixTree, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states where all contexts follow one copy of the prompt."""
    assert batch.position_ids is not None, "rows are padded on the left"
    after, rows, device = tree.contexts[1:], len(batch), batch.input_ids.device
    length = batch.input_ids.shape[1]
    tokens = torch.tensor([context[-1] for context in after], dtype=torch.int64, device=device)
    places = torch.tensor([len(context) for context in after], dtype=torch.int64, device=device)
    total = length + len(after)
    seen = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    seen[length:, length:] = tree.begins.to(device)
    mask = torch.cat([batch.attention_mask, batch.attention_mask.new_ones(rows, len(after))], 1)
    # A pad token sees itself: a row of the softmax without any key would be NaN. Nothing sees the pad token.
    allowed = (seen & mask[:, None].bool()) | torch.eye(total, dtype=torch.bool, device=device)
    base = base_of(model)
    dtype = base.get_input_embeddings().weight.dtype
    bias = torch.zeros(allowed.shape, dtype=dtype, device=device).masked_fill(~allowed, torch.finfo(dtype).min)
    states = getattr(base, base.base_model_prefix)(
        input_ids=torch.cat([batch.input_ids, tokens.expand(rows, -1)], 1),
        attention_mask=bias[:, None],
        position_ids=torch.cat([batch.position_ids, batch.position_ids[:, -1:] + places], 1),
        use_cache=False,
    ).last_hidden_state
    return states[:, length - 1 :].to(device), mask


def _repeating(model: Any, tree: PrefixTree, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the states where every run of the tree follows a copy of the prompt; runs are padded on the right."""
    assert batch.position_ids is not None, "rows are padded on the left"
    rows, runs, extra, device = len(batch), len(tree.runs), tree.extra_tokens, batch.input_ids.device
    length = batch.input_ids.shape[1]
    tokens = torch.tensor([[*run, *[0] * (extra - len(run))] for run in tree.runs], dtype=torch.int64, device=device)
    lengths = torch.tensor([len(run) for run in tree.runs], device=device)
    places = torch.arange(extra, device=device)

    def joined(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.cat([left[:, None].expand(-1, runs, -1), right.expand(rows, runs, extra)], 2).flatten(0, 1)

    wide = Batch(
        input_ids=joined(batch.input_ids, tokens),
        attention_mask=joined(batch.attention_mask, (places < lengths[:, None]).long()),
        position_ids=joined(batch.position_ids, batch.position_ids[:, None, -1:] + 1 + places),
        class_mask=batch.class_mask.repeat_interleave(runs, 0),
    )
    base = base_of(model)
    states = getattr(base, base.base_model_prefix)(**wide.inputs, use_cache=False).last_hidden_state.to(device)
    states = states.reshape(rows, runs, length + extra, -1)
    return states[:, list(tree.shown_in), [length - 1 + len(context) for context in tree.contexts]], wide.attention_mask
