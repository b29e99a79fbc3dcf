"""An adapter that was trained elsewhere: its folder, its base, and what its settings say of its task."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from laplora.errors import ArtifactCorruptError, ModelError, NonFiniteError, first_line
from laplora.models.adapters import attach_adapter
from laplora.models.base import BaseSpec, load_base_model
from laplora.models.checkpoints import ADAPTER_FILES, fetch_checkpoint
from laplora.models.classifier_head import check_supplied, output_layer, trained_linears
from laplora.models.held_weights import non_finite
from laplora.models.lora import trained_class
from laplora.models.quiet import quiet_loading, silent_transformers
from laplora.readouts.classification_head import output_names
from laplora.remote.address import is_address
from training.data.adapter_rows import HeadTask
from training.workspace.terminal import say

#: Ends of the names of model classes by PEFT's task types.
_CLASSES = {"CAUSAL_LM": ("ForCausalLM", "LMHeadModel"), "SEQ_CLS": ("ForSequenceClassification",)}


@dataclass(frozen=True)
class GivenAdapter:
    """An adapter's folder, the base that it goes on, and whether that is a sequence classification model."""

    folder: Path
    base: str
    has_head: bool


def given_adapter(adapter: str, base: str | None, task_type: str | None) -> GivenAdapter:
    """Return an adapter, fetched where it is a hub id or an address.

    Args:
        base: of it, in place of what its settings say; task_type: PEFT's, where they say none.

    Raises:
        ConfigError, DownloadError: as of ``fetch_checkpoint``.
        ModelError: none there, settings that cannot be read, an unknown base, or a task that is neither a causal
            language model's nor a classification head's.
    """
    folder = _folder(adapter)
    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        named = str(settings.get("base_model_name_or_path") or "")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"the adapter's adapter_config.json cannot be read ({type(error).__name__})") from None
    if base is None and not named:
        raise ModelError("the adapter does not name its base model: name it by --base")
    if base and named and base != named:
        say(f"the adapter says that its base is {named}; it is put on {base}, as --base says")
    return GivenAdapter(folder, base or named, _task_type(settings, task_type) == "SEQ_CLS")


def head_task(adapter: GivenAdapter, location: str) -> HeadTask:
    """Return what the base at a location and an adapter's file say of the task of its head.

    Raises:
        ModelError, ArtifactCorruptError: no configuration there, a base that has no sequence classification
            model or none with a plain linear head, or an adapter's file that cannot be read.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(location, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"base model {location!r}: no configuration can be loaded ({first_line(error)})") from None
    problem = config.problem_type
    return HeadTask(
        classes=_saved_classes(adapter.folder, location, config),
        names=output_names(config),
        several=None if problem is None else problem == "multi_label_classification",
    )


def _saved_classes(adapter: Path, location: str, config: Any) -> int:
    """Return the number of classes of the head that an adapter's folder holds, or else the base's configuration."""
    from safetensors import SafetensorError, safe_open
    from transformers import AutoModelForSequenceClassification

    build: Any = AutoModelForSequenceClassification.from_config
    try:
        with torch.device("meta"), silent_transformers():
            model = build(config, trust_remote_code=False)
    except ValueError as error:
        raise ModelError(
            f"base model {location!r} has no sequence classification model in transformers ({first_line(error)})"
        ) from None
    name = f"base_model.model.{output_layer(model)[0]}.weight"
    try:
        with safe_open(adapter / "adapter_model.safetensors", framework="pt") as handle:
            names: Any = handle.keys()
            return int(handle.get_slice(name).get_shape()[0]) if name in names else int(config.num_labels)
    except (OSError, ValueError, IndexError, SafetensorError) as error:
        raise ArtifactCorruptError(f"the adapter's file cannot be read ({type(error).__name__})") from None


def load_adapted(adapter: GivenAdapter, location: str, spec: BaseSpec, device: Any, *, several: bool) -> Any:
    """Return the base with the adapter.

    Args:
        several: whether a head is told that several labels of a row may be right, where its configuration says nothing.

    Raises:
        ModelError, ArtifactCorruptError: a base or an adapter that is not covered, or not each other's; parameters that
            neither the base nor the adapter has.
        NonFiniteError: a base whose weights hold NaN or infinity.
    """
    loaded = load_base_model(location, spec, device=device)
    if (name := non_finite(loaded.model)) is not None:
        raise NonFiniteError(
            f"the base model {spec.model!r} holds NaN or infinity in {name}: fetch or convert it again"
        )
    if several and loaded.model.config.problem_type is None:
        say("rows have lists of labels: each label is right or wrong on its own (multi_label_classification)")
        loaded.model.config.problem_type = "multi_label_classification"
    model = attach_adapter(loaded.model, adapter.folder)
    if adapter.has_head:
        check_supplied(model, loaded.missing, trained_linears(model))
    return model


def _folder(adapter: str) -> Path:
    """Return the adapter's folder, fetched where it is a hub id or an address."""
    if is_address(adapter):
        return fetch_checkpoint(adapter, "adapter", progress=say)
    folder = Path(adapter)
    if folder.is_dir():
        if missing := [name for name in ADAPTER_FILES if not (folder / name).is_file()]:
            raise ModelError(f"{adapter} has no {missing[0]}: give the folder that PEFT's save_pretrained wrote")
        return folder
    with quiet_loading():
        from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(adapter, allow_patterns=list(ADAPTER_FILES)))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no adapter at {adapter!r}: give a folder, or a hub id that this machine can reach ({first_line(error)})"
        ) from None


def _task_type(settings: Any, wanted: str | None) -> str:
    """Return the PEFT task type of an adapter's settings; one that names none is a causal language model's."""
    task_type, name = settings.get("task_type"), trained_class(settings)
    if task_type is None and name is not None:
        task_type = next((kind for kind, ends in _CLASSES.items() if name.endswith(ends)), name)
    if wanted and task_type in _CLASSES and task_type != wanted:
        raise ModelError(f"the adapter says that it is of {task_type}, --task-type is {wanted}: leave it out")
    kind = wanted or task_type or "CAUSAL_LM"
    if kind not in _CLASSES:
        raise ModelError(
            f"the adapter is of {str(kind)[:64]}, expected {' or '.join(_CLASSES)}: if it is one of them, say "
            "so by --task-type"
        )
    return str(kind)
