"""Sequence classification models: which linears are their head, what of it was trained, the state that it reads, and
the head alone on disk: weights and biases of its trained linears by their names in the base, as safetensors.

The head is everything outside the base model proper (``score`` of decoders; ``classifier``, and with some a pooler, of
encoders). Its last linear gives the logits. That of a decoder is read at the last token by place. transformers finds
the place by value, the last token that is not ``pad_token_id``; the two agree unless a text ends with that token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from laplora.errors import ArtifactCorruptError, ModelError
from laplora.models.lora import adapter_name, lora_layers
from laplora.models.readout import base_of, last_hidden
from laplora.prompts.rows import Batch, Side

#: The names of tables of position embeddings.
_POSITIONS = ("position_embeddings", "wpe", "embed_positions", "positions_embed")
#: Parts of models that also see or hear, with tables of their own.
_OF_OTHERS = frozenset({"vision_tower", "vision_model", "visual", "audio_tower", "audio_model"})
#: The head of every decoder in transformers.
_OF_DECODERS = "score"


@dataclass(frozen=True, eq=False)
class HeadPart:
    """One module of a head with parameters of its own; of PEFT's ``modules_to_save`` the active adapter's copy."""

    module: Any
    is_copy: bool


def is_adapted(model: Any) -> bool:
    """Return whether PEFT wraps the model."""
    return hasattr(model, "peft_config") and hasattr(model, "get_base_model")


def head_parts(model: Any) -> dict[str, HeadPart]:
    """Return the head's modules that have parameters of their own, by path in the base, in module order."""
    base = base_of(model)
    active = adapter_name(model) if is_adapted(model) else None
    return {
        path: part
        for name, child in base.named_children()
        if name != base.base_model_prefix
        for path, part in _parts(name, child, active, is_copy=False)
    }


def _parts(path: str, module: Any, active: str | None, *, is_copy: bool) -> Iterator[tuple[str, HeadPart]]:
    if hasattr(module, "modules_to_save"):
        is_copy = active in module.modules_to_save and not module.disable_adapters
        module = module.modules_to_save[active] if is_copy else module.original_module
    if hasattr(module, "lora_A") or next(module.parameters(recurse=False), None) is not None:
        yield path, HeadPart(module, is_copy)
        return
    for name, child in module.named_children():
        yield from _parts(f"{path}.{name}", child, active, is_copy=is_copy)


def output_layer(model: Any) -> tuple[str, nn.Linear]:
    """Return path and module of the linear that gives the logits. Raises ModelError where there is no plain one."""
    base = base_of(model)
    kind, count = type(base).__name__, base.config.num_labels
    for path, part in reversed(head_parts(model).items()):
        if hasattr(part.module, "lora_A"):
            raise ModelError(
                f"{path} of {kind} has LoRA: the head is trained whole, name it in modules_to_save and not in "
                "target_modules"
            )
        if not isinstance(part.module, nn.Linear):
            continue
        if part.module.out_features != count or not part.module.weight.is_floating_point():
            break
        return path, part.module
    raise ModelError(f"{kind} has no plain linear head of {count} classes beside .{base.base_model_prefix}")


def head_side(model: Any) -> Side:
    """Return the side on which rows are padded: the left for a decoder, whose last token is read."""
    return "left" if output_layer(model)[0] == _OF_DECODERS else "right"


def trained_linears(model: Any) -> tuple[str, ...]:
    """Return the paths of the head's linears that a posterior covers, the one of the logits last.

    With an adapter: those in its ``modules_to_save``, which may be none. Without one: that of the logits, and with a
    frozen base every other linear of the head that takes gradients.

    Raises:
        ModelError: as ``lora_layers``; trained modules that are no linear, or without the layer of the logits.
    """
    base, (last, _) = base_of(model), output_layer(model)
    parts = head_parts(model)
    if is_adapted(model):
        lora_layers(model)
        trained = {path for path, part in parts.items() if part.is_copy}
    else:
        frozen = not any(p.requires_grad for p in getattr(base, base.base_model_prefix).parameters())
        trained = {
            path for path, part in parts.items() if frozen and any(p.requires_grad for p in part.module.parameters())
        } | {last}
    for path in trained:
        if not isinstance(parts[path].module, nn.Linear):
            kind = type(parts[path].module).__name__
            raise ModelError(
                f"{path} is a trained {kind}, and the posterior covers linears alone: leave it frozen, or out of "
                "modules_to_save"
            )
    if trained and last not in trained:
        raise ModelError(f"{sorted(trained)[0]} is trained and {last}, which gives the logits, is not: train it too")
    return tuple(path for path in parts if path in trained and path != last) + ((last,) if trained else ())


def head_linear(model: Any, path: str) -> nn.Linear:
    """Return a linear of the head by its path in the base."""
    linear: nn.Linear = head_parts(model)[path].module
    return linear


def head_block(path: str) -> str:
    """Return the name of the block of one of the head's linears."""
    return f"{path}.head"


def with_bias(inputs: torch.Tensor, layer: nn.Linear) -> torch.Tensor:
    """Return inputs (..., in) of a linear with a last feature of 1 where it has a bias: its block's wide side."""
    return inputs if layer.bias is None else torch.cat([inputs, torch.ones_like(inputs[..., :1])], -1)


def head_weights(model: Any, trained: tuple[str, ...]) -> dict[str, nn.Parameter]:
    """Return weight and bias of each of a head's trained linears, by their names in the base."""
    return {
        f"{path}.{name}": parameter
        for path in trained
        for name, parameter in head_linear(model, path).named_parameters(recurse=False)
    }


def with_head_blocks(weights: Mapping[str, torch.Tensor], trained: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Return weights by block name: a head's weight and bias, by their names in the base, become one matrix.

    It is (out, in), with a last column for the bias.
    """
    joined = {name: weight for name, weight in weights.items() if name.rpartition(".")[0] not in trained}
    for path in trained:
        weight, bias = weights[f"{path}.weight"], weights.get(f"{path}.bias")
        joined[head_block(path)] = weight if bias is None else torch.cat([weight, bias[:, None]], 1)
    return joined


def head_state(model: Any, batch: Batch) -> torch.Tensor:
    """Return what the linear of the logits sees, (batch, features): the model's own forward pass, pooled as it pools.

    It is on the batch's device.

    For a decoder, it is the final hidden state at the last token. Raises ModelError where the model does not run it
    once.
    """
    path, layer = output_layer(model)
    if path == _OF_DECODERS:
        return last_hidden(model, batch)
    seen: list[torch.Tensor] = []
    with layer.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0])):
        base_of(model)(**batch.inputs)
    if len(seen) != 1 or seen[0].dim() != 2 or len(seen[0]) != len(batch):
        shapes = [tuple(state.shape) for state in seen]
        raise ModelError(
            f"{path} of {type(base_of(model)).__name__} saw inputs of shape {shapes}, expected one vector a row"
        )
    return seen[0].to(batch.input_ids.device)


def head_logits(layer: nn.Linear, state: torch.Tensor) -> torch.Tensor:
    """Return the logits (batch, classes) of ``head_state`` on its device, float32 (float64 for a float64 model)."""
    wide = torch.promote_types(torch.float32, state.dtype)
    bias = None if layer.bias is None else layer.bias.to(wide)
    return F.linear(state.to(layer.weight.device, wide), layer.weight.to(wide), bias).to(state.device)


def longest_input(model: Any) -> int | None:
    """Return how many tokens a model has position embeddings for; None where it has no table of them."""
    sizes = [
        # Those before a text's first one: RoBERTa's are for padding, OPT's are an offset.
        module.num_embeddings - (getattr(module, "offset", 0) if module.padding_idx is None else module.padding_idx + 1)
        for name, module in base_of(model).named_modules()
        if isinstance(module, nn.Embedding)
        and name.rpartition(".")[2] in _POSITIONS
        and not _OF_OTHERS & {*name.split(".")}
    ]
    return min(sizes, default=None)


def check_length(model: Any, max_tokens: int, added: int = 0) -> None:
    """Raise ModelError where a model has positions for fewer than ``max_tokens`` tokens, and ``added`` ones of a label.

    One that is beyond the table ends a CUDA process.
    """
    longest = longest_input(model)
    if longest is not None and longest < max_tokens + added:
        kind, labels = type(base_of(model)).__name__, f" and a label adds up to {added}" if added else ""
        raise ModelError(f"{kind} has positions for {longest} tokens, max_tokens is {max_tokens}{labels}: lower it")


def check_ending(model: Any, tokenizer: Any) -> None:
    """Raise ModelError where transformers trained a decoder's head at another token than the last.

    That is where the tokenizer ends every text with the token that the configuration names for padding.
    """
    padding = base_of(model).config.get_text_config().pad_token_id
    if head_side(model) == "left" and padding is not None and tokenizer.encode("a")[-1] == padding:
        raise ModelError(
            f"the tokenizer ends every text with token {padding}, which the model's configuration names for padding: "
            "transformers trained the head at the token before it. Train it with another pad_token_id"
        )


def save_head(model: Any, trained: tuple[str, ...], file: Path) -> None:
    """Write the trained linears of a head; ``trained`` are their paths in the base."""
    from safetensors.torch import save_file

    weights = head_weights(model, trained)
    save_file({name: weight.detach().cpu().clone().contiguous() for name, weight in weights.items()}, file)


def attach_head(model: Any, file: Path, trained: tuple[str, ...]) -> Any:
    """Return a base model with a file's weights in the place of its head's, in its number format; itself, frozen.

    Its modules get new parameters: the tensors of the old ones may be other models' too.

    Raises:
        ArtifactCorruptError: a file that cannot be read, or does not hold exactly these linears, each finite; paths
            that are no linears of this model's head.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    parts = head_parts(model)
    wrong = [path for path in trained if path not in parts or not isinstance(parts[path].module, nn.Linear)]
    if wrong or not trained:
        raise ArtifactCorruptError(f"{file.name} is of {wrong[:2]}, which are no linears of this base's head")
    try:
        tensors = load_file(file)
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactCorruptError(f"{file.name} cannot be read: {type(error).__name__}") from None
    weights = head_weights(model, trained)
    if tensors.keys() != weights.keys():
        odd = sorted(tensors.keys() ^ weights.keys())
        raise ArtifactCorruptError(f"{file.name} and the head of this base name different tensors, such as {odd[:2]}")
    for name, parameter in weights.items():
        tensor = tensors[name]
        if tensor.shape != parameter.shape or not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
            raise ArtifactCorruptError(
                f"{file.name}: {name} should be finite floats of shape {tuple(parameter.shape)}, it is {tensor.dtype} "
                f"{tuple(tensor.shape)}"
            )
        path, _, kind = name.rpartition(".")
        replaced = nn.Parameter(tensor.to(parameter.device, parameter.dtype), requires_grad=False)
        setattr(head_linear(model, path), kind, replaced)
    model.requires_grad_(False)
    return model.eval()


def check_supplied(model: Any, missing: Collection[str], trained: tuple[str, ...]) -> None:
    """Raise ModelError where a parameter is neither in the base's checkpoint (``missing``) nor in the trained head.

    transformers starts it at random, so that answers would be others after every load.
    """
    absent = sorted(set(missing) - head_weights(model, trained).keys())
    if absent:
        raise ModelError(
            f"{absent[0]} is not in the base's checkpoint and was not saved with the head, so it is random at every "
            "load: name its module in modules_to_save where it is a linear of the head, or save a base that has it"
        )
