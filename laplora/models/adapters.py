"""Attaching an adapter to a base model, after every check that its files and its modules can be given."""

from __future__ import annotations

import json
import warnings
from collections.abc import Collection, Mapping
from copy import copy
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from laplora.errors import ArtifactCorruptError, ModelError, first_line
from laplora.files.atomic import write_json, write_tensors
from laplora.models.classifier_head import head_weights, trained_linears
from laplora.models.lora import adapter_name, check_settings, exact, is_classifier, lora_layers, named_settings
from laplora.models.probe import check_adapted
from laplora.models.quiet import quiet_loading


def attach_adapter(model: nn.Module, folder: Path) -> Any:
    """Return the base model with the PEFT adapter in ``folder``, frozen, in eval mode.

    Raises:
        ModelError: an adapter of a kind the method does not cover, one that changes the base's weights, one saved with
            other embeddings than the base's, or one of a module that does not run once on every token
            (``laplora.models.probe.check_adapted``).
        ArtifactCorruptError: adapter files that cannot be read, or that do not hold exactly the LoRA
            matrices of this base, and its head's linears where they were trained, each finite.
    """
    from safetensors import SafetensorError

    with quiet_loading():
        from peft import PeftModel

    try:
        check_settings(folder, model)
        embeddings = _saved_embeddings(model, folder, _retrained(model, folder))
        with quiet_loading(), warnings.catch_warnings():
            # what peft only warns of is checked below, and refused
            warnings.filterwarnings("ignore", "Found missing adapter keys", UserWarning)
            config = named_settings(folder)
            peft_model = PeftModel.from_pretrained(model, str(folder), is_trainable=False, config=config)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, RecursionError, SafetensorError) as error:
        raise ArtifactCorruptError(
            f"the adapter in {folder.name!r} does not load on this base: {first_line(error)}"
        ) from None
    heads = head_weights(peft_model, trained_linears(peft_model)) if is_classifier(model) else {}
    verify_adapter(folder, lora_layers(peft_model), heads, but=embeddings)
    peft_model.requires_grad_(False)
    peft_model.eval()
    check_adapted(peft_model)
    return peft_model


def _retrained(model: Any, folder: Path) -> set[str]:
    """Return the names, in an adapter's file, of parameters of a classifier's head of which PEFT makes copies."""
    if not is_classifier(model):
        return set()
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    modules = tuple(map(str, settings.get("modules_to_save") or ()))
    if settings.get("task_type") == "SEQ_CLS":
        modules += ("classifier", "score")  # as PEFT does
    inside = f"{model.base_model_prefix}."
    parts = [(name, name.split(".")) for name, _ in model.named_parameters() if not name.startswith(inside)]
    return {
        f"base_model.model.{name}"
        for name, path in parts
        if any(".".join(path[:depth]).endswith(modules) for depth in range(1, len(path)))
    }


def _saved_embeddings(model: Any, folder: Path, retrained: set[str]) -> set[str]:
    """Return which tensors of an adapter's file are the base's embeddings, after comparing them with the base's.

    PEFT saves them beside an adapted ``lm_head``, and beside any adapter on request (``save_embedding_layers``). To be
    called before PEFT loads the file: it copies whatever has a base weight's name over that weight, which artifacts
    may share.

    Args:
        retrained: names of further tensors that PEFT copies elsewhere.

    Raises:
        ArtifactCorruptError: other tensors than LoRA matrices, embeddings and those.
        ModelError: an adapted embedding, or one that is another than the base's, as after tokens were added or the
            embedding was trained.
    """
    embeddings = {model.get_input_embeddings(), model.get_output_embeddings()} - {None}
    ours = {
        f"base_model.model.{path}.{wrapped}{name}": parameter
        for path, module in model.named_modules()
        if module in embeddings
        for name, parameter in module.named_parameters(recurse=False)
        for wrapped in ("", "base_layer.")
    }
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as handle:
        keys: Any = handle.keys()
        names = {name for name in keys if not name.endswith((".lora_A.weight", ".lora_B.weight"))} - retrained
        if any(".lora_embedding_" in name for name in names):
            raise ModelError(
                f"the adapter in {folder.name!r} is on an embedding with LoRA, which the posterior does not cover"
            )
        if names - ours.keys():
            raise ArtifactCorruptError(
                f"the adapter in {folder.name!r} does not hold the LoRA matrices of this base alone: not expected "
                f"{sorted(names - ours.keys())[:2]}"
            )
        for name in sorted(names):
            tensor, parameter = handle.get_tensor(name), ours[name].detach()
            if tensor.shape != parameter.shape:
                what = f"is {tuple(tensor.shape)}, the base's is {tuple(parameter.shape)}"
            elif not torch.equal(tensor.to(parameter.device, parameter.dtype), parameter):
                what = "has other values than the base's"
            else:
                continue
            raise ModelError(
                f"the adapter in {folder.name!r} was saved with an embedding, and {name} {what}: if it was trained or "
                "tokens were added, save a base with it; if not, save the adapter with save_embedding_layers=False"
            )
    return names


def verify_adapter(
    folder: Path, layers: Mapping[str, Any], heads: Collection[str] = (), but: Collection[str] = ()
) -> None:
    """Raise ArtifactCorruptError where the file is not exactly the layers' matrices and a trained head's, each finite.

    Args:
        heads: names in the base of the trained head's weights and biases.
        but: names in the file that may be there too.
    """
    from safetensors.torch import load_file

    tensors = {name: t for name, t in load_file(folder / "adapter_model.safetensors").items() if name not in but}
    expected = {f"base_model.model.{name}.{side}.weight" for name in layers for side in ("lora_A", "lora_B")}
    expected |= {f"base_model.model.{name}" for name in heads}
    if tensors.keys() != expected:
        raise ArtifactCorruptError(
            f"the adapter in {folder.name!r} does not hold the LoRA matrices of this base: missing "
            f"{sorted(expected - tensors.keys())[:2]}, not expected {sorted(tensors.keys() - expected)[:2]}"
        )
    for name, tensor in sorted(tensors.items()):
        if not tensor.is_floating_point():
            raise ArtifactCorruptError(f"the adapter in {folder.name!r} holds {tensor.dtype}: {name}")
        if not bool(tensor.isfinite().all()):
            raise ArtifactCorruptError(f"the adapter in {folder.name!r} holds NaN or infinity: {name}")


def save_adapter(
    model: Any,
    folder: Path,
    dtype: torch.dtype | None = None,
    *,
    base_model: str | None = None,
) -> None:
    """Write a PEFT model's active adapter in PEFT's layout, without the base's embeddings.

    Args:
        dtype: number format of the file; None: as the weights are. base_model: what the adapter says its base is.
    """
    from peft.utils import get_peft_model_state_dict

    name = adapter_name(model)
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    settings = copy(model.peft_config[name])
    settings.inference_mode = True
    settings.auto_mapping = None  # of the class that it was loaded on; an artifact says which by its read-out
    if base_model is not None:
        settings.base_model_name_or_path = base_model
    settings.save_pretrained(str(folder))
    fields = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    if isinstance(fields["target_modules"], list):  # peft keeps them as a set, of another order in every process
        fields["target_modules"] = sorted(fields["target_modules"])
    layers = lora_layers(model)  # an expression is not tried where the adapter is loaded again
    for field, values in (
        ("rank_pattern", {path: layer.r[name] for path, layer in layers.items() if layer.r[name] != settings.r}),
        (
            "alpha_pattern",
            {path: a for path, layer in layers.items() if (a := layer.lora_alpha[name]) != settings.lora_alpha},
        ),
    ):
        fields[field] = exact(values) if fields.get(field) else {}
    write_json(folder / "adapter_config.json", fields)
    tensors = {key: value.to("cpu", dtype) for key, value in state.items()}
    write_tensors(folder / "adapter_model.safetensors", tensors, {"format": "pt"})
