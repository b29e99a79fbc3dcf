"""Jacobians, and the written-out reverse pass, against torch's automatic differentiation of the same model."""

from __future__ import annotations

import gc
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_path import assert_jacobians
from tiny_models import ARCHITECTURES, Architecture, tiny_model, tiny_task
from torch.nn import functional as F

from laplora.errors import LaploraWarning, ModelError
from laplora.jacobians import attention, layer_reverse
from laplora.jacobians import contrasts as jacobians
from laplora.jacobians.attention import attention_gradients, by_torch
from laplora.jacobians.blocks import ContrastJacobians
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks, reverse_pass
from laplora.jacobians.decoder_forms import _NORM_OFFSETS, DecoderForm, decoder_form
from laplora.jacobians.reverse import DecoderTape
from laplora.prompts.rows import EncodedRow
from laplora.readouts.label_tokens import LabelTokens

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# float64; the two add in another order.
EXACT = {"rtol": 1e-9, "atol": 1e-12}


def both(model: Any, task: Any, blocks: Any = None, **wanted: bool) -> tuple[ContrastJacobians, ContrastJacobians]:
    """Return the written-out and the automatic Jacobians of a task's rows."""
    blocks = blocks or find_blocks(model, task.classes)
    assert reverse_pass(model).kind == "written_out"
    mine, torchs = (
        contrast_jacobians(model, task.batch(), task.label_ids, blocks, automatic=automatic, **wanted)
        for automatic in (False, True)
    )
    return mine, torchs


def assert_same(mine: ContrastJacobians, torchs: ContrastJacobians) -> None:
    """Compare everything that is there; both have the same things."""
    assert torch.equal(mine.logits, torchs.logits)
    assert torch.equal(mine.hidden, torchs.hidden)
    for one, other in zip(mine.blocks, torchs.blocks, strict=True):
        for name, value in vars(one).items():
            expected = getattr(other, name)
            assert (value is None) == (expected is None), name
            if value is not None:
                torch.testing.assert_close(value, expected, msg=lambda m, n=name: f"{n}: {m}", **EXACT)


def form_of(model: Any) -> DecoderForm:
    form = decoder_form(model.get_base_model())
    assert form is not None
    return form


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


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("classes", "tied"), [(2, False), (4, True)])
def test_jacobians_are_those_of_one_autograd_call_a_number(
    architecture: Architecture, tied: bool, classes: int
) -> None:
    """float64 through two layers and sums over at most 7 tokens, in another order: some hundred roundings of 1e-16."""
    model, task = tiny_model(architecture, tied=tied), tiny_task(examples=6, classes=classes)
    assert_jacobians(model, task, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(
    ("part", "change"),
    [("self_attn", lambda result: (result[0] / 2, *result[1:])), ("mlp.act_fn", lambda result: result.clamp(max=0.1))],
)
def test_a_pass_that_differs_is_not_used(part: str, change: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer is Llama's by name, its attention counts half or its gate is bounded: Jacobians are automatic ones."""
    model, task = tiny_model("llama", targets=ALL), tiny_task(examples=4)
    module = model.get_base_model().model.layers[1].get_submodule(part)
    forward = module.forward
    monkeypatch.setattr(module, "forward", lambda *args, **options: change(forward(*args, **options)))
    blocks = find_blocks(model, task.classes)
    with pytest.warns(LaploraWarning, match="LlamaForCausalLM is not used: .*differs from automatic"):
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
    with pytest.warns(LaploraWarning, match="is not used: it raised KeyError"):
        assert reverse_pass(tiny_model("llama")).kind == "automatic"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_pass_that_is_right_is_used_in_the_formats_that_serve(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounding is no difference, and a small fault is: rotary embeddings turned the other way on the way back."""
    assert reverse_pass(tiny_model("llama", targets=ALL, layers=4, dtype=dtype)).kind == "written_out"
    rotate = layer_reverse.rotate
    monkeypatch.setattr(layer_reverse, "rotate", lambda x, cos, sin: rotate(x, cos, sin if x.dim() == 4 else -sin))
    with pytest.warns(LaploraWarning, match="differs from automatic"):
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


# Every covered family, on its true configuration.

FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
#: Two query heads share keys and values, and heads are of another size than hidden / heads where the family allows it.
_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden": 32}
_SLIDING = {"sliding_window": 3}
_LONG_ROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}
FAMILIES: dict[str, tuple[Architecture, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama with biases": ("llama", _HEADS | {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", _SLIDING),
    "qwen2": ("qwen2", {"num_key_value_heads": 1}),
    "ministral": (
        "ministral",
        _SLIDING | {"head_dim": 12} | {"layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "qwen3": ("qwen3", _HEADS | {"head_dim": 12, "attention_bias": True}),
    "qwen3 sliding": ("qwen3", _HEADS | _SLIDING | {"use_sliding_window": True, "max_window_layers": 2}),
    "granite": (
        "granite",
        _HEADS | {"residual_multiplier": 0.3, "attention_multiplier": 0.2, "embedding_multiplier": 2.0},
    ),
    "smollm3": ("smollm3", _HEADS | {"no_rope_layer_interval": 2}),
    "olmo2": ("olmo2", _HEADS),
    "olmo3": ("olmo3", _HEADS | _SLIDING | {"layer_types": ["sliding_attention", "full_attention"] * 2}),
    "phi3": ("phi3", _HEADS | _SLIDING),
    "phi4 mini": ("phi3", _HEADS | {"rope_parameters": _LONG_ROPE | {"partial_rotary_factor": 0.5}, "tied": True}),
    "gemma": ("gemma", _HEADS | {"head_dim": 12, "num_key_value_heads": 1}),
    "gemma3": (
        "gemma3",
        _HEADS
        | _SLIDING
        | {"head_dim": 12, "query_pre_attn_scalar": 7, "layer_types": ["sliding_attention", "full_attention"] * 2},
    ),
    "gemma3 that sees": ("gemma3_sees", _HEADS | {"head_dim": 12}),
}


def family_model(family: str, **options: Any) -> Any:
    """Return a model of the family with every linear of its four decoder layers adapted."""
    architecture, settings = FAMILIES[family]
    linears = FUSED if architecture == "phi3" else ALL
    # A pattern, so that the linears of a vision tower stay as they are.
    targets = options.pop("targets", rf".*(?<!vision_tower\.encoder)\.layers\.\d+\.\w+\.({'|'.join(linears)})|lm_head")
    return tiny_model(architecture, **({"targets": targets, "layers": 4} | settings | options))


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_linear_of_every_family(family: str, classes: int) -> None:
    """Float64, rows of different lengths, then of one without padding, within a window of three and not."""
    model, task = family_model(family), tiny_task(examples=7, classes=classes)
    mine, torchs = both(model, task)
    assert len(mine.blocks) == 2 * (4 * (4 if family.startswith("phi") else 7) + 1)
    assert_same(mine, torchs)
    for length in (1, 5):
        rows = [EncodedRow(tuple(range(start, start + length)), classes) for start in (5, 20)]
        assert_same(*both(model, replace(task, rows=rows)))


@pytest.mark.parametrize("family", ["llama", "phi4 mini", "qwen3", "olmo2", "gemma3"])
def test_the_lowest_adapted_linear_is_where_it_stops(family: str) -> None:
    """Each linear alone, of layers 1 and 3 of four."""
    model = family_model(family)
    task = tiny_task(examples=5, classes=3)
    blocks = find_blocks(model, task.classes)
    for name in form_of(model).layers[0].linears:
        for part in (f"layers.1.{name}.", f"layers.3.{name}.lora_B"):
            chosen = [block for block in blocks if part in block.name]
            assert len(chosen) == (1 if part.endswith("_B") else 2)
            assert_same(*both(model, task, chosen))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.bfloat16, 0.3)])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_in_the_formats_that_serve(family: str, dtype: torch.dtype, tolerance: float) -> None:
    """Against float64, by the norm of a block: as close as the automatic pass is, up to a factor.

    Tens of roundings in a row, of 6e-8 or 4e-3 each; the adapter is float32 in both. These small random models round by
    up to 0.23 in bfloat16, automatically too.
    """
    exact, low = family_model(family), family_model(family, dtype=dtype)
    for name, weight in low.named_parameters():
        if "lora_" in name:
            weight.data = weight.data.float()
    with torch.no_grad():
        for weight, rounded in zip(exact.parameters(), low.parameters(), strict=True):
            weight.copy_(rounded)
        for buffer, rounded in zip(exact.buffers(), low.buffers(), strict=True):
            buffer.copy_(rounded)
    task = tiny_task(examples=6)
    mine, torchs = both(low, task)
    expected = contrast_jacobians(exact, task.batch(), task.label_ids, find_blocks(exact, task.classes))
    for one, other, true in zip(mine.blocks, torchs.blocks, expected.blocks, strict=True):
        assert one.jacobian.dtype == other.jacobian.dtype
        size = true.jacobian.norm()
        error, torchs_error = ((b.jacobian.double() - true.jacobian).norm() / size for b in (one, other))
        assert error < tolerance
        assert error < 1.5 * torchs_error + 1e-6


@pytest.mark.parametrize(
    ("family", "wrong"),
    [
        ("gemma3", {"residual": 0.5}),
        ("gemma3", {"scale": 0.3}),
        ("qwen3", {"head_norms": None}),
        ("smollm3", {"rotary": True}),
        ("granite", {"residual": 1.0}),
    ],
)
def test_a_form_that_is_misread_is_not_used(
    family: str, wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison with automatic differentiation sees each part of the form."""
    model = family_model(family)
    form = form_of(model)
    misread = replace(form, layers=tuple(replace(layer, **wrong) for layer in form.layers))
    monkeypatch.setattr(jacobians, "decoder_form", lambda base: misread)
    with pytest.warns(LaploraWarning, match="differs from automatic"):
        assert reverse_pass(model).kind == "automatic"


def test_what_is_no_such_form_is_differentiated_automatically() -> None:
    for architecture, target, options in (
        ("gemma3", "o_proj", {"use_bidirectional_attention": True}),
        ("gemma3", "o_proj", {"hidden_activation": "gelu"}),
        ("phi3", "o_proj", {"attn_implementation": "eager"}),
        ("phi", "v_proj", {}),
        ("llama", "o_proj", {"hidden_act": "gelu"}),
    ):
        how = reverse_pass(tiny_model(architecture, targets=[target], **options))
        assert (how.kind, how.form) == ("automatic", None), architecture
        assert how.reason.endswith("is not written out")


def test_the_page_of_models_lists_every_covered_class() -> None:
    page = Path(__file__).resolve().parents[3] / "docs" / "models.md"
    assert set(re.findall(r"`(\w+DecoderLayer)`", page.read_text(encoding="utf-8"))) == set(_NORM_OFFSETS)
