"""The written-out reverse pass of every covered family, on its true configuration, against torch's automatic one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from reverse_comparison import ALL, EXACT, assert_same, both, form_of
from tiny_models import Architecture, tiny_model, tiny_task

from laplora.jacobians import contrasts as jacobians
from laplora.jacobians.contrasts import contrast_jacobians, find_blocks, reverse_pass
from laplora.prompts.rows import EncodedRow

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
    "phi4 mini": (
        "phi3",
        _HEADS | {"rope_parameters": _LONG_ROPE | {"partial_rotary_factor": 0.5}, "tied": True},
    ),
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
    """Float64, rows of different lengths, then of one without padding, within a window of three and not.

    Everything that a fit needs.
    """
    model, task = family_model(family), tiny_task(examples=7, classes=classes)
    mine, torchs = both(model, task, tokens=True)
    assert len(mine.blocks) == 2 * (4 * (4 if family.startswith("phi") else 7) + 1)
    assert_same(mine, torchs, **EXACT)
    for length in (1, 5):
        rows = [EncodedRow(tuple(range(start, start + length)), classes) for start in (5, 20)]
        assert_same(*both(model, replace(task, rows=rows)), **EXACT)


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
            assert_same(*both(model, task, chosen), **EXACT)


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
    with pytest.warns(RuntimeWarning, match="differs from automatic"):
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
