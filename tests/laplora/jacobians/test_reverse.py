"""The written-out reverse pass against torch's automatic differentiation of the same model."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from reverse_comparison import ALL, EXACT, both, form_of
from tiny_models import tiny_model, tiny_task
from torch.nn import functional as F

from laplora.errors import ModelError
from laplora.jacobians import attention, layer_reverse
from laplora.jacobians import contrasts as jacobians
from laplora.jacobians.attention import attention_gradients, by_torch
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks, reverse_pass
from laplora.jacobians.reverse import DecoderTape
from laplora.readouts.label_tokens import LabelTokens


def test_it_is_decided_once_for_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """No answer looks at the modules again; and no model is kept alive for it."""
    looks = []
    look = jacobians.decoder_form
    monkeypatch.setattr(jacobians, "decoder_form", lambda base: looks.append(0) or look(base))
    one, other, task = tiny_model("llama"), tiny_model("phi"), tiny_task(examples=2)
    for model in (one, other, one, other):
        contrast_jacobians(model, task.batch(), task.label_ids, find_blocks(model, task.classes))
    assert [reverse_pass(model).kind for model in (one, other)] == ["written_out", "automatic"]
    assert len(looks) == 2
    known = len(jacobians._DECIDED)
    del one, model
    gc.collect()
    assert len(jacobians._DECIDED) < known


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("self_attn", lambda result: (result[0] / 2, *result[1:])),
        ("mlp.act_fn", lambda result: result.clamp(max=0.1)),
    ],
)
def test_a_pass_that_differs_is_not_used(part: str, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer is Llama's by name, its attention counts half or its gate is bounded: Jacobians are automatic ones."""
    model, task = tiny_model("llama", targets=ALL), tiny_task(examples=4)
    module = model.get_base_model().model.layers[1].get_submodule(part)
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda *args, **options: change(forward(*args, **options)))
    blocks = find_blocks(model, task.classes)
    with pytest.warns(RuntimeWarning, match="LlamaForCausalLM is not used: .*differs from automatic"):
        contrast_jacobians(model, task.batch(), task.label_ids, blocks)
    again = contrast_jacobians(model, task.batch(), task.label_ids, blocks)  # without a warning
    exact = contrast_jacobians(model, task.batch(), task.label_ids, blocks, automatic=True)
    for mine, torchs in zip(again.blocks, exact.blocks, strict=True):
        assert torch.equal(mine.jacobian, torchs.jacobian)
    how = reverse_pass(model)
    assert how.kind == "automatic"
    assert "differs from automatic differentiation by" in how.reason


def test_a_pass_that_raises_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_readout(*_: Any) -> Any:
        raise KeyError("position_embeddings")

    monkeypatch.setattr(LabelTokens, "gradient", no_readout)
    with pytest.warns(RuntimeWarning, match="is not used: it raised KeyError"):
        assert reverse_pass(tiny_model("llama")).kind == "automatic"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_that_is_right_is_used_in_the_formats_that_serve(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding is no difference, and a small fault is: rotary embeddings turned the other way on the way back."""
    assert reverse_pass(tiny_model("llama", targets=ALL, layers=4, dtype=dtype)).kind == "written_out"
    rotate = layer_reverse.rotate
    monkeypatch.setattr(layer_reverse, "rotate", lambda x, cos, sin: rotate(x, cos, sin if x.dim() == 4 else -sin))
    with pytest.warns(RuntimeWarning, match="differs from automatic"):
        assert reverse_pass(tiny_model("llama", targets=ALL, layers=4, dtype=dtype)).kind == "automatic"


def test_a_model_that_changed_is_refused_and_no_hook_stays() -> None:
    """In training mode, with an attention that was exchanged since, and with a layer that runs twice."""
    model, task = tiny_model("llama"), tiny_task(examples=2)
    blocks, ids = find_blocks(model, task.classes), task.batch().input_ids
    for part in (model, model.get_base_model()):
        part.train()
        with pytest.raises(ModelError, match=r"in training mode.*call model\.eval\(\)"):
            contrast_jacobians(model, task.batch(), task.label_ids, blocks)
        model.eval()
    with torch.no_grad(), DecoderTape(form_of(model), {"model.layers.0.self_attn.q_proj.lora_A"}):
        model(input_ids=ids)
        with pytest.raises(ModelError, match="out of turn"):
            model(input_ids=ids)
    both(model, task)
    model.get_base_model().set_attn_implementation("eager")
    with pytest.raises(ModelError, match="attention is another one than at load"):
        contrast_jacobians(model, task.batch(), task.label_ids, blocks)
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 100])
@pytest.mark.parametrize("last", [1, 3, 6])
@pytest.mark.parametrize("masked", [False, True])
def test_attention_gradients(masked: bool, last: int, rows_at_a_time: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out and by torch's kernel, against automatic differentiation of the repeated heads."""
    draw = torch.Generator().manual_seed(0)
    batch, heads, groups, tokens, size, contrasts = 5, 4, 2, 6, 3, 2

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    query, key, value = random(batch, heads, last, size), *(random(batch, groups, tokens, size) for _ in range(2))
    gradient = random(contrasts, batch, heads, last, size)
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()[-last:].expand(batch, 1, -1, -1).clone()
    if masked:
        mask[0, :, :, :3] = False  # its first tokens are padding, and see nothing
        gradient[:, 0, :, : max(0, 3 - (tokens - last))] = 0
    leaves = [t.clone().requires_grad_() for t in (query, key, value)]
    scores = 0.5 * leaves[0] @ leaves[1].repeat_interleave(2, 1).mT
    output = F.softmax(scores.masked_fill(~mask, -1e30), -1) @ leaves[2].repeat_interleave(2, 1)
    expected = [torch.autograd.grad(output, leaves, one, retain_graph=True) for one in gradient]
    monkeypatch.setattr(attention, "_SCORE_BYTES", rows_at_a_time * 8 * heads * last * tokens)
    given = mask if masked else None
    for found in (
        attention_gradients(query, key, value, given, 0.5, gradient),
        by_torch(query, key, value, mask, 0.5, gradient),
    ):
        for i, part in enumerate(found):
            torch.testing.assert_close(part, torch.stack([one[i] for one in expected]), **EXACT)
