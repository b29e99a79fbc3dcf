"""Refusing models that the method does not cover, by how they run on one short batch.

Their logits must be ``lm_head`` applied to the last hidden state, and then what the configuration says of them
(``laplora.models.readout``). Each adapted module must run once on every token.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import nn

from laplora.errors import ModelError, first_line
from laplora.models.classifier_head import head_logits, head_side, head_state, output_layer
from laplora.models.lora import is_classifier, is_linear, lora_layers
from laplora.models.readout import base_of, head_name, label_logits, last_hidden, logit_transform
from laplora.prompts.rows import Batch, EncodedRow, Side, collate

#: Tokens of the two rows.
_LENGTHS = (6, 3)
#: How far padding may move a row's last hidden state, as a share of its norm: by rounding, which can tip routers of
#: experts. Wrong positions move it by most of its norm. In float32 1 %.
_PADDING_TOLERANCE = {torch.bfloat16: 0.25, torch.float16: 0.25}
#: The exceptions of a forward pass on inputs that it does not take.
REFUSALS = (TypeError, ValueError, LookupError, AttributeError, NotImplementedError)
#: The exceptions of a device that failed or is out of memory. Its libraries raise a RuntimeError with such a text.
_OF_THE_DEVICE = (torch.OutOfMemoryError, getattr(torch, "AcceleratorError", torch.OutOfMemoryError))
_TEXTS_OF_THE_DEVICE = ("CUDA error", "HIP error", "cuDNN error", "can't allocate memory")


def is_of_the_device(error: Exception) -> bool:
    """Return whether an exception says that the device failed or has no memory left, and so nothing of the model."""
    return isinstance(error, _OF_THE_DEVICE) or any(text in str(error) for text in _TEXTS_OF_THE_DEVICE)


def probe_batch(model: Any, class_count: int = 2, side: Side = "left") -> Batch:
    """Return two rows of ordinary tokens, the second padded on one side, on the model's device."""
    base = base_of(model)
    embeddings = base.get_input_embeddings().weight
    size, special = len(embeddings), _special_tokens(base.config)
    ordinary = [token for token in range(size // 5, size) if token not in special] or list(range(size))
    tokens = iter(ordinary[:: max(1, len(ordinary) // (2 * sum(_LENGTHS)))])
    rows = [EncodedRow(tuple(islice(tokens, length)), class_count) for length in _LENGTHS]
    padding = base.config.get_text_config().pad_token_id
    return collate(rows, class_count=class_count, pad_token_id=padding or 0, side=side).to(embeddings.device)


def _special_tokens(config: Any) -> set[int]:
    """Return the tokens that a configuration names: padding, ends, places of images."""
    tokens: set[int] = set()
    for settings in (config.to_dict(), config.get_text_config().to_dict()):
        for name, value in settings.items():
            if "token_id" in name or "token_index" in name:
                tokens |= {v for v in (value if isinstance(value, list) else [value]) if isinstance(v, int)}
    return tokens


def check_readout(model: Any) -> None:
    """Compare the logits that the classifier reads with those that the model itself gives.

    On the way ``lm_head``'s output is replaced by numbers from -100 to 100, so that a soft cap or a factor shows.

    Raises:
        ModelError: no plain output embedding; a model that does not run on tokens alone, or answers a padded row
            otherwise; logits that are more than ``lm_head`` applied to the decoder's last hidden state and then
            ``logit_transform``.
    """
    kind, head = type(model).__name__, model.get_output_embeddings()
    plain = getattr(head, "base_layer", head)  # where an adapter of it is disabled
    if not isinstance(plain, nn.Linear) or not plain.weight.is_floating_point():
        raise ModelError(f"{kind} has no plain output embedding: a quantized lm_head is not covered")
    if not isinstance(getattr(model, model.base_model_prefix, None), nn.Module):
        raise ModelError(f"{kind} has no decoder at .{model.base_model_prefix}")
    batch, transform = probe_batch(model), logit_transform(model)
    weight = plain.weight
    given = torch.linspace(-100, 100, plain.out_features, device=weight.device).to(weight.dtype)
    seen: list[torch.Tensor] = []

    def replace(_module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        seen.append(inputs[0].reshape(-1, inputs[0].shape[-1]))
        return given.expand_as(output)

    with torch.no_grad(), _runs_on_tokens(model):
        hidden, alone = last_hidden(model, batch), last_hidden(model, _second_row(batch))
        labels = batch.input_ids[0].tolist()
        ours, heads = label_logits(model, hidden, labels), transform.apply(head(hidden)[:, labels].double())
        with head.register_forward_hook(replace):
            logits = model(**batch.inputs, use_cache=False).logits[:, -1]
    if moved := _moved(alone, hidden[1:], hidden.dtype):
        raise ModelError(
            f"{kind} answers otherwise where a row is padded on the left: its last hidden state moves by {moved:.2g} "
            "of its norm. It ignores position_ids or attention_mask: use another base model"
        )
    if len(seen) != 1:
        raise ModelError(f"{kind} runs {head_name(model)} {len(seen)} times in one forward pass, expected once")
    if logits.shape[-1] != len(given):
        raise ModelError(f"{kind} gives {logits.shape[-1]} logits of the {len(given)} of {head_name(model)}")
    last = seen[0].view(len(hidden), -1, hidden.shape[-1])[:, -1]
    expected = transform.apply(given.double()).to(logits.device)
    if not _is_close(logits, expected.expand_as(logits).to(logits.dtype)):
        worst = int((logits.double() - expected).abs().max(0).values.argmax())
        what = (
            f"{head_name(model)} gave {float(given[worst]):.4g}, its logit is {float(logits[0, worst]):.4g}, expected "
            f"{float(expected[worst]):.4g}"
        )
    elif not _is_close(last, hidden):
        what = f"{head_name(model)} sees another state than the decoder's last one"
    elif not _is_close(ours, heads.to(hidden.dtype)):
        what = f"{head_name(model)} is more than its weight and bias"
    else:
        return
    settings = ", ".join(f"{name}={value:g}" for name, value in _logit_settings(model.config).items())
    raise ModelError(
        f"{kind} transforms its logits{f' ({settings})' if settings else ''}: {what}. laplora reads them as a linear "
        "map of the last hidden state, then a factor and a soft cap where settings name one, and would be wrong by "
        "what else is done: use another base model"
    )


def _second_row(batch: Batch) -> Batch:
    """Return the probe's padded row without its padding."""
    real = batch.attention_mask[1].bool()
    positions = None if batch.position_ids is None else batch.position_ids[1:, real]
    return Batch(batch.input_ids[1:, real], batch.attention_mask[1:, real], positions, batch.class_mask[1:])


def _moved(one: torch.Tensor, other: torch.Tensor, dtype: torch.dtype) -> float:
    """Return how far one tensor is from another, as a share of its norm; 0 where rounding in a format may do it."""
    moved = float((one.double() - other.double()).norm() / other.double().norm().clamp_min(1e-30))
    return moved if moved > _PADDING_TOLERANCE.get(dtype, 1e-2) else 0.0


def _is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two tensors are the same but for rounding in their number format; NaN is NaN."""
    gap = torch.finfo(other.dtype).eps ** 0.5 * float(other.double().nan_to_num().abs().max())
    return torch.allclose(one.double().cpu(), other.double().cpu(), rtol=0, atol=gap, equal_nan=True)


def _logit_settings(config: Any) -> dict[str, float]:
    """Return the settings that say what a model does to its logits, where there are such."""
    settings = config.get_text_config().to_dict()
    return {
        name: value
        for name, value in settings.items()
        if ("logit" in name or "lm_head" in name)
        and not name.startswith(("attn", "attention", "router", "output"))
        and type(value) in (int, float)
        and value != 1
    }


def check_head(model: Any) -> None:
    """Compare the head's last linear with the model's own logits, and a padded row with itself alone.

    On the way the linear's output is replaced by numbers from -100 to 100, so that a cap or a factor above it shows.

    Raises:
        ModelError: no plain linear head; a model that does not run on tokens alone, answers a padded row otherwise,
            gives NaN or infinity, or does more to its logits than the linear.
    """
    kind, (path, layer) = type(base_of(model)).__name__, output_layer(model)
    side = head_side(model)
    batch = probe_batch(model, side=side)
    alone = _second_row(batch)
    given = torch.linspace(-100, 100, layer.out_features, device=layer.weight.device).to(layer.weight.dtype)

    def replace(_module: nn.Module, _inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        return given.expand_as(output)

    with torch.no_grad(), _runs_on_tokens(model):
        padded, state = head_state(model, batch)[1:], head_state(model, alone)
        ours, theirs = head_logits(layer, head_state(model, alone)), model(**alone.inputs).logits
        with layer.register_forward_hook(replace):
            logits = model(**alone.inputs).logits
    if not bool(padded.isfinite().all() and state.isfinite().all()):
        raise ModelError(
            f"{kind} gives NaN or infinity on ordinary tokens: its weights hold such, or overflow in their format"
        )
    if moved := _moved(padded, state, layer.weight.dtype):
        raise ModelError(
            f"{kind} answers otherwise where a row is padded on the {side}: what {path} sees moves by {moved:.2g} of "
            "its norm. It ignores attention_mask, or reads its head elsewhere: use another base model"
        )
    if _moved(ours, theirs, layer.weight.dtype) or not torch.equal(logits[0].to(given), given):
        raise ModelError(
            f"{kind} does more to its logits than {path}, or gives it another state than the one at the last token: "
            "use another base model"
        )


def check_states(model: Any) -> None:
    """Compare a padded row's states with those of the row alone, of a model without an output embedding.

    Raises:
        ModelError: a model that does not run on tokens alone, gives no state for each token, NaN or infinity, or other
            states where a row is padded.
    """
    kind, batch = type(model).__name__, probe_batch(model, side="right")
    with torch.no_grad(), _runs_on_tokens(model):
        padded, state = (model(**given.inputs).last_hidden_state for given in (batch, _second_row(batch)))
    if padded.dim() != 3 or padded.shape[:2] != batch.input_ids.shape or not bool(state.isfinite().all()):
        raise ModelError(f"{kind} gives no finite state for each token: use another base model")
    if moved := _moved(padded[1:, : state.shape[1]], state, model.dtype):
        raise ModelError(
            f"{kind} gives other states where a row is padded on the right, by {moved:.2g} of their norm: it ignores "
            "attention_mask; use another base model"
        )


def check_targets(base: nn.Module, targets: Collection[str]) -> None:
    """Raise ModelError unless every target names linear modules; the message says what the others are."""
    linear = {name.rpartition(".")[2] for name, m in base.named_modules() if is_linear(m)}
    for target in sorted(set(targets) - linear):
        raise ModelError(f"adapter.targets {target!r}: {_what_is(base, target)}; the linear ones are {sorted(linear)}")


def _what_is(base: nn.Module, target: str) -> str:
    for path, module in base.named_modules():
        if path.rpartition(".")[2] == target:
            return f"{path} is a module of the kind {type(module).__name__}, which the posterior does not cover"
        if target in dict(module.named_parameters(recurse=False)):
            kind = type(module).__name__
            return f"{path}.{target} is a parameter that {kind} holds for all its experts or parts, not a linear module"
    return "no module of this base is called that"


def check_adapted(model: Any) -> None:
    """Run one short batch and look at how each adapted module runs.

    Raises:
        ModelError: an adapter that ``lora_layers`` refuses; an adapted module that does not run exactly once, on every
            token of every row. The message names it, and the targets that do.
    """
    calls = _calls(model)
    for name in lora_layers(model):
        if name in calls and (fault := _fault(calls[name])) is not None:
            good = sorted(_good_targets(calls) | _language_model_head(model))
            raise ModelError(f"the adapted module {name} {fault}: choose adapter.targets among {good}")


#: How the linear modules of a base ran, the output embedding aside: by path the shapes of what they saw.
_Calls = Mapping[str, list[tuple[int, ...]]]


def _calls(model: Any) -> _Calls:
    base = base_of(model)
    classifies = is_classifier(base)
    batch = probe_batch(model, side=head_side(model) if classifies else "left")
    wrapped = {name for name, module in base.named_modules() if hasattr(module, "lora_A")}
    inside, head = tuple(f"{name}." for name in wrapped), base.get_output_embeddings()
    watched = {
        name: module
        for name, module in base.named_modules()
        if (name in wrapped or (is_linear(module) and not name.startswith(inside)))
        and module is not head  # read at the last token, by its label rows
    }
    calls: dict[str, list[tuple[int, ...]]] = {name: [] for name in watched}

    def note(name: str, _module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        calls[name].append(tuple(inputs[0].shape) if inputs else ())

    with ExitStack() as hooks, torch.no_grad(), _runs_on_tokens(base):
        for name, module in watched.items():
            hooks.enter_context(module.register_forward_pre_hook(partial(note, name)))
        (head_state if classifies else last_hidden)(model, batch)
    return calls


def _fault(shapes: list[tuple[int, ...]]) -> str | None:
    if not shapes:
        return "never runs on text, so that it has nothing to learn from and no variance"
    if len(shapes) > 1:
        return f"runs {len(shapes)} times in one forward pass, and shared modules are not covered"
    if len(shapes[0]) == 2 and shapes[0][0] == len(_LENGTHS):  # once a row, as a pooler above the first token
        return None
    if len(shapes[0]) != 3 or shapes[0][:2] != (len(_LENGTHS), max(_LENGTHS)):
        return (
            f"sees inputs of shape {shapes[0]} in place of {(len(_LENGTHS), max(_LENGTHS), shapes[0][-1])}: not each "
            "row's tokens, as in the experts of a mixture of experts, shared ones too"
        )
    return None


def _language_model_head(model: Any) -> set[str]:
    """Return the name of the output embedding, which may be adapted; of a classifier nothing, its head is no target."""
    return set() if is_classifier(base_of(model)) else {head_name(model).rpartition(".")[2]}


def _good_targets(calls: _Calls) -> set[str]:
    """Return the names whose modules all run as they should."""
    names = {path.rpartition(".")[2] for path in calls}
    return names - {path.rpartition(".")[2] for path, shapes in calls.items() if _fault(shapes) is not None}


@contextmanager
def _runs_on_tokens(model: Any) -> Iterator[None]:
    """Raise ModelError where the block shows that a model does not take what a decoder or encoder of text takes."""
    try:
        yield
    except REFUSALS as error:
        raise ModelError(
            f"{type(model).__name__} does not run on token ids, attention mask and positions alone, as a decoder of "
            f"text does ({type(error).__name__}: {first_line(error)[:200]}): use another base model"
        ) from error
